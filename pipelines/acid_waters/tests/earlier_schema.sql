-- Make the tables those of earlier versions of schema.sql.
DROP VIEW rejects, next_offsets;
DROP TABLE topics, positions, losses;
ALTER TABLE lots DROP COLUMN first_row;
ALTER TABLE versions DROP CONSTRAINT versions_state_check;
UPDATE versions SET state = 'quarantined' WHERE state IN ('rejected', 'isolated');
