"""The forms for issues and pull requests are valid, and name commands that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
FORMS = ("bug", "feature")

# https://docs.github.com/en/communities/using-templates-to-encourage-useful-issues-and-pull-requests
FORM_KEYS = {"name", "description", "title", "labels", "assignees", "projects", "type", "body"}
ELEMENT_KEYS = {"type", "id", "attributes", "validations"}
ATTRIBUTES = {
    "input": {"label", "description", "placeholder", "value"},
    "textarea": {"label", "description", "placeholder", "value", "render"},
}
"""What an element of each type that we use may say of itself."""


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_the_keys_that_github_knows(name: str) -> None:
    form = read(f"{name}.yml")
    assert form.keys() <= FORM_KEYS and form["name"] and form["description"] and form["body"]
    for element in form["body"]:
        assert element.keys() <= ELEMENT_KEYS
        assert element["attributes"].keys() <= ATTRIBUTES[element["type"]]
        assert element["attributes"]["label"]
        assert re.fullmatch(r"[a-z0-9_-]+", element["id"])
        assert element.get("validations", {}).keys() <= {"required"}
    for values in (
        [element["id"] for element in form["body"]],
        [element["attributes"]["label"] for element in form["body"]],
    ):
        assert len(values) == len(set(values))


def test_the_form_for_bugs_asks_for_what_a_bug_report_needs() -> None:
    elements = {element["id"]: element for element in read("bug.yml")["body"]}
    assert list(elements) == ["command", "message", "expected", "version", "device", "manifest"]
    required = {name for name, element in elements.items() if element.get("validations", {}).get("required")}
    assert required == {"command", "message", "version", "device"}
    assert "`hskd --version`" in elements["version"]["attributes"]["description"]


def test_the_chooser_has_the_keys_that_github_knows() -> None:
    chooser = read("config.yml")
    assert chooser.keys() == {"blank_issues_enabled", "contact_links"}
    for link in chooser["contact_links"]:
        assert link.keys() == {"name", "url", "about"}
        place = re.fullmatch(r"https://github\.com/hskd/hskd/(?:tree|blob)/main/(.+)", link["url"])
        assert place and (ROOT / place[1]).exists()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", ".github/pull_request_template.md"])
def test_the_commands_of_make_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)`", (ROOT / page).read_text(encoding="utf-8")))
    assert named and named <= targets
