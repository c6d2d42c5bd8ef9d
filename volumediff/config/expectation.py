"""What a configuration expects of a value, in words, where pydantic has refused one."""

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["expected"]

# Kind of pydantic's error -> what was expected; limits are filled in.
WORDS = {
    "tuple_type": "a list such as [64, 64, 64]",
    "list_type": "a list such as [1, 2]",
    "too_long": "a list of at most {max_length} values",
    "too_short": "a list of at least {min_length} values",
    "missing": "one more value",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "dict_type": "keys with values, such as {{key: value}}",
    "mapping_type": "keys with values, such as {{key: value}}",
    "model_type": "keys with values, such as {{key: value}}",
    "model_attributes_type": "keys with values, such as {{key: value}}",
    "dataclass_type": "keys with values, such as {{key: value}}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "literal_error": "{expected}",
    "none_required": "null",
}


def expected(error: Mapping[str, Any]) -> str:
    """`expected a whole number`, for one of `ValidationError.errors()`."""
    kind, facts = error["type"], error.get("ctx", {})
    if kind in WORDS:
        return f"expected {WORDS[kind].format(**facts)}".replace("'", "")
    text = re.sub(r"^(Input|Value) should (be|have) ", "", error["msg"])
    return f"expected {text[:1].lower()}{text[1:]}"
