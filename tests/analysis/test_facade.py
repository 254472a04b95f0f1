"""The names that notebooks import from ``hskd.analysis`` itself."""

from __future__ import annotations

import pytest

import hskd.analysis


@pytest.mark.parametrize("name", hskd.analysis.__all__)
def test_every_public_name_is_the_object_of_its_module(name: str) -> None:
    public = getattr(hskd.analysis, name)
    assert public.__name__ == name
    assert public.__module__.startswith("hskd.analysis.")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        hskd.analysis.no_such_name  # noqa: B018
