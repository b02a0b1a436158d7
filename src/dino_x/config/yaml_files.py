"""YAML as configuration files have it: a key that is there twice is a mistake, not a choice."""

from typing import Any

import yaml


class KeyTwiceError(ValueError):
    """A key is twice in one mapping.

    Attributes:
        key: its name.
        line: of the second one, from 1.
    """

    def __init__(self, key: object, line: int) -> None:
        super().__init__(f"{key} is twice in one mapping")
        self.key, self.line = key, line


class _Loader(yaml.SafeLoader):
    """The safe loader, which takes the last of several equal keys, made strict."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping. Raises KeyTwiceError."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise KeyTwiceError(key, key_node.start_mark.line + 1)
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node, which stands for itself alone: a few aliases of aliases would fill the memory."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases are not taken", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def load_yaml(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError, KeyTwiceError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except KeyTwiceError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error  # numbers of 5,000 digits, days that are not
