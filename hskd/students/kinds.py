"""The built-in kinds of student. They are registered by importing the module ``settings`` of every subpackage."""

import hskd.students
from hskd.registry import import_all
from hskd.students.base import StudentContext, StudentKind
from hskd.students.registry import STUDENTS, AnyStudent

__all__ = ["STUDENTS", "AnyStudent", "StudentContext", "StudentKind"]

import_all(hskd.students.__name__, hskd.students.__path__, "settings")
