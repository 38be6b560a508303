"""The servers of docker-compose.yml, started without Docker: see `python -m stack --help`."""
