"""The saved objects: errors that Kibana accepts at the import and that break a page later."""

import json
import math
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT

FILES = sorted((PROJECT / "kibana").glob("*.ndjson"))
MAPPINGS = {
    "sensors_data*": "sensors_data.json",
    "sensors_dead_letters*": "sensors_dead_letters.json",
}
# The oldest Kibana that must import them is 8.17; it refuses a file with a newer version.
VERSIONS = {"index-pattern": "8.0.0", "search": "8.0.0", "lens": "8.9.0", "dashboard": "8.9.0"}
NUMBERS = {"float", "integer", "long"}
SHOWN = ("lens", "search")  # what a panel can show


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file, and at its end the details of the export."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def objects(*types: str) -> list[Any]:
    """Return the objects of these types as parameters of a test."""
    found = [o for file in FILES for o in lines(file) if o.get("type") in types]
    return [pytest.param(o, id=o["id"]) for o in found]


def by_id(type_: str) -> dict[str, dict[str, Any]]:
    """Return the objects of a type by their ids."""
    return {o["id"]: o for file in FILES for o in lines(file) if o.get("type") == type_}


def fields_of(view_id: str) -> dict[str, str]:
    """Return the fields of a data view's index and their types."""
    title = by_id("index-pattern")[view_id]["attributes"]["title"]
    mapping = json.loads((PROJECT / "mappings" / MAPPINGS[title]).read_text())["mappings"]
    return {name: definition["type"] for name, definition in mapping["properties"].items()}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_has_the_form_of_an_export_and_all_its_references(file: Path) -> None:
    *found, details = lines(file)
    assert details["exportedCount"] == len(found) > 0
    assert len({(o["type"], o["id"]) for o in found}) == len(found)
    ids = {(o["type"], o["id"]) for o in found}
    for o in found:
        assert o["typeMigrationVersion"] == VERSIONS[o["type"]]
        assert o["coreMigrationVersion"] == "8.8.0"
        for reference in o["references"]:
            assert set(reference) == {"id", "name", "type"}
            assert (reference["type"], reference["id"]) in ids, "not in the same file"


@pytest.mark.parametrize("view", objects("index-pattern"))
def test_a_data_view_names_fields_that_exist(view: dict[str, Any]) -> None:
    fields = fields_of(view["id"])
    assert fields[view["attributes"]["timeFieldName"]] == "date"
    assert set(json.loads(view["attributes"]["fieldAttrs"])) == set(fields)
    assert set(json.loads(view["attributes"]["fieldFormatMap"])) <= set(fields)


@pytest.mark.parametrize("search", objects("search"))
def test_a_search_shows_fields_that_exist(search: dict[str, Any]) -> None:
    source = json.loads(search["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])
    (reference,) = search["references"]
    assert source["indexRefName"] == reference["name"]
    fields = fields_of(reference["id"])
    assert set(search["attributes"]["columns"]) <= set(fields)
    assert search["attributes"]["sort"] == [["timestamp", "desc"]]


def accessors(state: dict[str, Any]) -> list[str]:
    """Return the columns that a chart names."""
    found = [state["accessor"]] if "accessor" in state else []
    found += [column["columnId"] for column in state.get("columns", ())]
    for layer in state.get("layers", ()):
        found += [layer["xAccessor"], *layer["accessors"]]
        found += [layer["splitAccessor"]] if "splitAccessor" in layer else []
    return found


@pytest.mark.parametrize("lens", objects("lens"))
def test_a_chart_uses_fields_of_the_right_type_and_its_own_columns(lens: dict[str, Any]) -> None:
    state = lens["attributes"]["state"]
    layers = state["datasourceStates"]["formBased"]["layers"]
    names = {f"indexpattern-datasource-layer-{name}": name for name in layers}
    assert {reference["name"] for reference in lens["references"]} == set(names)
    for reference in lens["references"]:
        layer, fields = layers[names[reference["name"]]], fields_of(reference["id"])
        columns = layer["columns"]
        assert sorted(layer["columnOrder"]) == sorted(columns)
        buckets = [columns[name]["isBucketed"] for name in layer["columnOrder"]]
        assert buckets == sorted(buckets, reverse=True), "buckets come before metrics"
        for column in columns.values():
            assert column["label"]
            if column["operationType"] == "filters":
                continue
            field = column["sourceField"]
            assert field == "___records___" or field in fields
            if column["operationType"] == "terms":
                assert fields[field] == "keyword"
                assert column["params"]["orderBy"].get("columnId") in {None, *columns}
            elif column["operationType"] == "date_histogram":
                assert fields[field] == "date"
            elif column["operationType"] in ("average", "range"):
                assert fields[field] in NUMBERS
            elif column["operationType"] == "last_value":
                assert fields[column["params"]["sortField"]] == "date"
            if column["dataType"] == "number" and not column["isBucketed"]:
                assert "decimals" in column["params"]["format"]["params"]
    shown = accessors(state["visualization"])
    assert set(shown) <= {name for layer in layers.values() for name in layer["columns"]}
    assert shown
    assert state["filters"] == []
    if lens["attributes"]["visualizationType"] == "lnsXY":
        assert state["visualization"]["yTitle"], "an axis has a unit"


@pytest.mark.parametrize("dashboard", objects("dashboard"))
def test_a_dashboard_is_laid_out_without_overlap_or_hole(dashboard: dict[str, Any]) -> None:
    attributes = dashboard["attributes"]
    shown = [reference for reference in dashboard["references"] if reference["type"] in SHOWN]
    targets = {reference["name"] for reference in shown}
    panels = json.loads(attributes["panelsJSON"])
    assert {f"{p['panelIndex']}:{p['panelRefName']}" for p in panels} == targets
    cells = []
    for panel in panels:
        grid = panel["gridData"]
        assert grid["i"] == panel["panelIndex"]
        cells += [
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        ]
    height = max(y for _, y in cells) + 1
    assert sorted(cells) == [(x, y) for x in range(48) for y in range(height)]
    assert attributes["timeRestore"] is True
    assert (attributes["timeFrom"], attributes["timeTo"]) == ("now-24h", "now")
    assert attributes["refreshInterval"] == {"pause": False, "value": 10_000}
    json.loads(attributes["optionsJSON"])
    json.loads(attributes["kibanaSavedObjectMeta"]["searchSourceJSON"])


def test_every_chart_is_on_a_dashboard() -> None:
    shown = {
        (reference["type"], reference["id"])
        for dashboard in by_id("dashboard").values()
        for reference in dashboard["references"]
        if reference["type"] in SHOWN
    }
    assert shown == {(type_, id_) for type_ in SHOWN for id_ in by_id(type_)}


@pytest.mark.parametrize("dashboard", objects("dashboard"))
def test_a_dashboard_has_a_control_of_the_sensors(dashboard: dict[str, Any]) -> None:
    ((name, control),) = json.loads(
        dashboard["attributes"]["controlGroupInput"]["panelsJSON"]
    ).items()
    assert control["type"] == "optionsListControl"
    assert control["explicitInput"]["id"] == name
    (view,) = (r for r in dashboard["references"] if r["type"] == "index-pattern")
    assert view["name"] == f"controlGroup_{name}:optionsListDataView"
    assert fields_of(view["id"])[control["explicitInput"]["fieldName"]] == "keyword"


def colours(value: Any) -> Iterator[str]:
    """Yield all colours that are named somewhere in an object."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from colours(inner)
    elif isinstance(value, str) and re.fullmatch("#[0-9A-F]{6}", value):
        yield value


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_a_sensor_has_one_colour_and_no_two_are_alike() -> None:
    layers = [
        layer
        for lens in by_id("lens").values()
        for layer in lens["attributes"]["state"]["visualization"].get("layers", ())
    ]
    split = [layer for layer in layers if layer.get("splitAccessor") == "sensor"]
    first, *others = [layer["colorMapping"] for layer in split]
    assert all(other == first for other in others)
    found = {
        value: assignment["color"]["colorCode"]
        for assignment in first["assignments"]
        for value in assignment["rule"]["values"]
    }
    assert list(found) == [f"sensor_{number:03d}" for number in range(1, 21)]
    for one, other in combinations(found.values(), 2):
        assert math.dist(rgb(one), rgb(other)) > 50, f"{one} {other}"
    plain = [layer for layer in layers if "splitAccessor" not in layer]
    assert set(found.values()).isdisjoint(colours(plain)), "a colour means one sensor only"


def test_a_fault_is_never_green() -> None:
    (file,) = (file for file in FILES if file.stem == "data_quality")
    found = set(colours(lines(file)))
    assert len(found) > 3
    for red, green, blue in map(rgb, found):
        assert green <= max(red, blue)
    search = by_id("search")["smart-city-search-dead-letters"]["attributes"]
    assert search["hideChart"], "Discover's own chart is green"


def test_kinds_and_causes_are_in_french_and_none_is_left_out() -> None:
    view = by_id("index-pattern")["smart-city-dead-letters"]["attributes"]
    lookup = json.loads(view["fieldFormatMap"])["kind"]["params"]["lookupEntries"]
    kinds = {entry["key"]: entry["value"] for entry in lookup}
    assert set(kinds) == {"invalid", "conflict", "refused"}
    by_kind = filters_of("smart-city-lens-dead-kinds", "kind")
    assert {query: label for label, query in by_kind.items()} == {
        f'kind: "{kind}"': label for kind, label in kinds.items()
    }
    *causes, other = filters_of("smart-city-lens-dead-causes", "cause").values()
    assert other == " and ".join(f"not {cause.partition(' and ')[0]}" for cause in causes)


def filters_of(lens: str, column: str) -> dict[str, str]:
    """Return the labels of a bucket of filters, and their queries."""
    state = by_id("lens")[lens]["attributes"]["state"]
    (layer,) = state["datasourceStates"]["formBased"]["layers"].values()
    found = layer["columns"][column]["params"]["filters"]
    return {one["label"]: one["input"]["query"] for one in found}


def test_no_time_is_shown_in_kibanas_own_words() -> None:
    """Kibana writes "22 seconds ago" in English, whatever its language."""
    assert "relative_date" not in "".join(file.read_text() for file in FILES)
