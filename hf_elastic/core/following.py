"""Config classes that bring along what belongs to them: models when there is a config, their code when it is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar


class ModelsFollow:
    """Config classes whose models are imported and made known to the Auto classes when the first config is made.

    Models take seconds to import, and nobody can ask an Auto class for one before there is a config.
    """

    # Set by the package; remote code brings its models along.
    before_first: ClassVar[Callable[[], None] | None] = None

    def __new__(cls, *args, **kwargs):
        """Make a config, also for `copy` and `pickle`."""
        if cls.before_first is not None:
            cls.before_first()
            cls.before_first = None  # last: another thread waits for the same imports
        return super().__new__(cls)


class CodeFollows(ModelsFollow):
    """Config classes of architectures that are not transformers' own: their code is saved for `trust_remote_code`."""

    # Set by the package: writes the code into a folder. Remote code is copied by transformers.
    write_code: ClassVar[Callable[[Path], None] | None] = None
    # Auto class -> where in the code its class is.
    auto_classes: ClassVar[Mapping[str, str]] = {}

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Like any `save_pretrained`, with the code of the architecture."""
        if type(self).write_code is not None:
            self.auto_map = dict(self.auto_classes)
        super().save_pretrained(save_directory, *args, **kwargs)
        if type(self).write_code is not None:
            type(self).write_code(Path(save_directory))
