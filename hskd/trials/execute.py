"""Running a trial: what it needs is found or made, its stages train, its result is written."""

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
    """Run a trial, or find it done. This is the only way to run one.

    Teacher, student and stores that the trial needs and that are not there are made first. A killed trial resumes,
    and a finished one is read. The result is in ``result.json`` of ``workspace.trial_folder(config)``, the trained
    student beside it.

    Args:
        config: everything that the result depends on.
        workspace: where artifacts lie.
        progress: is told what is made and trained.

    Raises:
        HskdError: something that the trial needs cannot be read or made, or a loss is not finite.
        MismatchError: parts of the config do not belong together, or the trial's folder holds another trial.
        CorruptionError: a file that the trial reads, or that it left, is damaged.
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
            # The folder is named by the config and the contents, so it was made from an artifact that is lost.
            progress.say(f"{error} It is in the work folder, so it is made anew.")
            processes.by_main(lambda: clear(folder))
            return run()
