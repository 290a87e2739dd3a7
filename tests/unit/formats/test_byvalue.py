"""Which modules the pickle of a function names."""

import json
from fractions import Fraction
from types import ModuleType

from cloudpickle import register_pickle_by_value, unregister_pickle_by_value

from batchd.formats.byvalue import dumps, dumps_naming
from batchd.formats.segment import input_blocks


def named(value: object) -> set[str]:
    payload, modules = dumps_naming(value)
    assert payload == dumps(value)
    return set(modules) - {"cloudpickle.cloudpickle"}


def test_modules_of_functions_classes_and_modules_are_named() -> None:
    assert named(input_blocks) == {"batchd.formats.segment"}
    assert named(json.JSONDecoder) == {"json.decoder"}
    assert named(lambda: json) == {"json"}
    assert named(lambda value: json.dumps(value)) == {"json"}  # noqa: PLW0108  (it names the module)
    assert named((Fraction(1, 2).limit_denominator, [].append)) == {"fractions", "builtins"}


def test_modules_that_travel_are_not_named() -> None:
    made = ModuleType("made_here")
    assert named(lambda: made) == set()
    register_pickle_by_value(json)
    try:
        assert named(json.dumps) & {"json"} == set()
    finally:
        unregister_pickle_by_value(json)
