"""For mkdocstrings: the fields of a config dataclass say what they are in `metadata={"help": ...}`, as `--help` prints it."""

import dataclasses
import importlib

import griffe


class HelpAsDocstring(griffe.Extension):
    """Give each such field its help as a docstring, and its default as a value."""

    def on_class(self, *, cls: griffe.Class, **kwargs) -> None:
        """Called for each class; a class without such fields stays as it is."""
        attributes = [member for member in cls.members.values() if member.is_attribute]
        if not any("metadata" in str(attribute.value) for attribute in attributes):
            return  # importing every module of the package would need every optional package
        found = getattr(importlib.import_module(cls.module.path), cls.name)
        for field in dataclasses.fields(found):
            if "help" in field.metadata and field.name in cls.members:
                attribute = cls.members[field.name]
                attribute.docstring = griffe.Docstring(field.metadata["help"], parent=attribute)
                attribute.value = _default(field)


def _default(field: dataclasses.Field) -> str | None:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return None if field.default is dataclasses.MISSING else repr(field.default)
