"""Run a trial: find or make what it needs, train its stages, write its result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hskd import processes
from hskd.artifacts import clear
from hskd.errors import MismatchError
from hskd.progress import Progress
from hskd.runtime import set_threads
from hskd.tasks.positions import require_positions
from hskd.trials.config import TrialConfig
from hskd.trials.inputs import with_contents
from hskd.trials.prepare import NO_SCORES, Distillation
from hskd.trials.result import TrialResult
from hskd.trials.stages import TrialInputs
from hskd.trials.trial import About, run_prepared
from hskd.trials.workspace import Workspace


def execute(config: TrialConfig, workspace: Workspace, progress: Progress) -> TrialResult:
    """Run a trial and return its result; a finished trial is read instead. Every trial is run by this function.

    Teacher, student and stores that the trial needs are made first if they are missing. A killed trial resumes. The
    result is ``result.json`` in ``workspace.trial_folder(config)``, with the trained student beside it.

    Args:
        config: everything that the result depends on.
        workspace: finds and makes artifacts.
        progress: receives progress reports.

    Raises:
        HskdError: an artifact that the trial needs cannot be read or made, or a loss is not finite.
        MismatchError: parts of the config do not belong together, or the trial's folder holds another trial.
        CorruptionError: a file that the trial reads, or wrote earlier, is damaged.
    """
    workspace.require_of_here(config)
    config = with_contents(config)
    workspace.ensure_shared(progress)
    folder = workspace.trial_folder(config)
    set_threads(config.threads)
    examples = workspace.examples
    student = workspace.load_student(config, progress)
    require_positions(student.model.config, examples.for_student, f"student {student.folder or config.student_name}")
    with workspace.lock(folder, progress):
        distillation = Distillation(config.settings, config.spec, student, examples.task, examples.train)
        prepared = workspace.prepare(config, distillation, progress)
        inputs = TrialInputs(
            config.settings,
            examples.task,
            examples.for_student,
            student.model,
            prepared.teacher_width,
            prepared.source,
            student.folder,
            workspace.held_out_source(config, student.layers, progress),
            prepared.spread,
            prepared.hsk_rows,
        )
        contents = workspace.inputs(config)
        knowledge = {} if prepared.knowledge is None else {"knowledge": prepared.knowledge}
        about = About(
            inputs=replace(contents, trained={**contents.trained, **knowledge}),
            identity=prepared.record | ({"scores": NO_SCORES} if config.store_alone else {}),
            notes={
                "id": config.id,
                "config": config.model_dump(mode="json"),
                "student_name": config.student_name,
                "head": examples.task.head.record(),
                "teacher_metrics": workspace.teacher_metrics(progress),
            },
        )
        run = partial(run_prepared, inputs, folder, workspace.options(config), about, progress)
        try:
            return run()
        except MismatchError as error:
            if workspace.is_users(folder):
                raise
            # The folder's name comes from config and contents, so the trial used an artifact that no longer exists.
            progress.say(f"{error} The trial is in the work folder, so it is run again from the start.")
            processes.by_main(lambda: clear(folder))
            return run()
