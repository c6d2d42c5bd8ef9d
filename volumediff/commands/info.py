"""`volumediff info`."""

from volumediff.commands._options import Json, print_json

__all__ = ["info"]


def info(as_json: Json = False) -> None:
    """List pipelines, methods and components."""
    from volumediff.commands._capabilities import inventory
    from volumediff.commands._tables import families

    found = inventory()
    if as_json:
        print_json(found)
    else:
        families(found)
