"""Registry of the kinds of student, and the discriminated union of their settings."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Discriminator, SerializeAsAny, Tag, TypeAdapter, WrapValidator
from typing_extensions import override

from hskd import plugins, registry
from hskd.errors import HskdError
from hskd.students.base import StudentKind

DEFAULT_KIND = "rosita"
"""Kind of settings that name none. Such settings predate the other kinds."""


class StudentRegistry(registry.Registry[type[StudentKind]]):
    """Registry of the kinds of student. Decorate a class with ``@STUDENTS.register`` to add it."""

    def __init__(self) -> None:
        super().__init__("kind of student", plugins.STUDENTS)
        self._union: TypeAdapter[Any] | None = None

    def register(self, cls: type[StudentKind]) -> type[StudentKind]:
        """Add a kind under the default value of its field ``kind``.

        Raises:
            HskdError: another class has that name.
        """
        self.add(cls.model_fields["kind"].default, cls, cls)
        self._union = None
        return cls

    @override
    def remove(self, name: str) -> None:
        super().remove(name)
        self._union = None

    def validate(self, settings: Any) -> StudentKind:
        """Validate the settings of a student as the kind that they name.

        Raises:
            ValueError: the kind is unknown.
            ValidationError: raised by pydantic, with the location of every mistake.
        """
        if isinstance(settings, StudentKind):
            return settings
        try:
            self.find(kind_of(settings))
        except HskdError as error:
            raise ValueError(str(error)) from None
        if self._union is None:
            self._union = TypeAdapter(self._made_union())
        student: StudentKind = self._union.validate_python(settings)
        return student

    def _made_union(self) -> Any:
        classes: list[Any] = [Annotated[cls, Tag(name)] for name, cls in self._entries.items()]
        return Annotated[
            reduce(or_, classes),
            Discriminator(
                kind_of,
                custom_error_type="unknown_kind",
                custom_error_message=f"unknown kind of student; known: {', '.join(self)}",
            ),
        ]


def kind_of(settings: Any) -> str:
    """Return the kind of student that ``settings`` (a dict or an object) name, or the default kind."""
    kind = settings.get("kind", DEFAULT_KIND) if isinstance(settings, dict) else getattr(settings, "kind", DEFAULT_KIND)
    return str(kind)


STUDENTS = StudentRegistry()
AnyStudent = Annotated[
    SerializeAsAny[StudentKind],
    WrapValidator(lambda settings, _: STUDENTS.validate(settings), json_schema_input_type=Any),
]
"""Settings of a student of any registered kind."""
