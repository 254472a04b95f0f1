"""The widgets of an explorer: the only module that needs ipywidgets."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from ipywidgets import HTML, Checkbox, Dropdown, FloatSlider, HBox, Image, VBox

from hskd.analysis.explore import FIGURES
from hskd.errors import HskdError

if TYPE_CHECKING:
    from hskd.analysis.explore import Explorer

MOST_POINTS = 5.0
"""Where the slider of the margin ends, unless a larger margin is chosen."""
_AXES = [("bytes an example", "bytes"), ("share of full's values", "values")]


class Controls:
    """An input for each field of an explorer's choice, and below them what it shows.

    Attributes:
        inputs: the widgets by the names of the choice's fields.
        message: what is wrong with the last choice; empty where nothing is.
        box: all widgets.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.inputs = {
            "results": Dropdown(options=[*explorer.folders], description="results"),
            "student": Dropdown(description="student"),
            "margin": FloatSlider(min=0, max=MOST_POINTS, step=0.05, description="margin"),
            "axis": Dropdown(options=_AXES, description="order by"),
            "figure": Dropdown(options=[(title, name) for name, title in FIGURES.items()], description="figure"),
            "new_examples": Checkbox(description="verdict for new test examples"),
        }
        self.message, self.verdict, self.table, self.caption = HTML(), HTML(), HTML(), HTML()
        self.picture = Image(format="png")
        self.picture.layout.max_width = "100%"
        rows = [
            HBox([self.inputs[name] for name in ("results", "student")[len(explorer.folders) == 1 :]]),
            HBox([self.inputs["margin"], HTML("points of score may be lost against full HSK")]),
            HBox([self.inputs[name] for name in ("axis", "figure", "new_examples")]),
        ]
        self.box = VBox([*rows, self.message, self.verdict, self.picture, self.caption, self.table])
        self._is_following = False
        self.show()
        for name, widget in self.inputs.items():
            widget.observe(partial(self._chosen, name), "value")

    def show(self) -> None:
        """Show what the explorer has chosen: what is quick first, the figure last."""
        explorer = self.explorer
        self._follow()
        self.message.value = ""
        self.verdict.value, self.table.value = explorer.verdict_html(), explorer.table_html()
        try:
            self.picture.value, self.caption.value = explorer.picture, escape(explorer.caption)
            self.picture.layout.display = None
        except HskdError as error:
            self.picture.layout.display, self.caption.value = "none", escape(str(error))

    def _follow(self) -> None:
        """Set the inputs to the explorer's choice; that is no choice of the user's."""
        choice, slider = self.explorer.choice, self.inputs["margin"]
        self._is_following = True
        try:
            self.inputs["student"].options = self.explorer.students
            slider.max = max(slider.max, choice.margin)
            for name, widget in self.inputs.items():
                widget.value = getattr(choice, name)
        finally:
            self._is_following = False

    def _chosen(self, name: str, change: dict[str, Any]) -> None:
        if self._is_following:
            return
        value = round(change["new"], 6) if name == "margin" else change["new"]  # 0.15, not 0.15000000000000002
        try:
            self.explorer.choose(**{name: value})
        except HskdError as error:
            self._follow()
            self.message.value = escape(str(error))
