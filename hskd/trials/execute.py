"""Running a trial: what it needs is found or made, its stages train, its result is written."""

from __future__ import annotations

from hskd.progress import Progress
from hskd.runtime import set_threads
from hskd.trials.config import TrialConfig
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
    """
    workspace.require_of_here(config)
    workspace.ensure_shared(progress)
    folder = workspace.trial_folder(config)
    set_threads(config.threads)
    examples = workspace.examples
    student = workspace.load_student(config, progress)
    with workspace.lock(folder):
        wanted = Distillation(config.settings, config.spec, student, examples.task, examples.train)
        prepared = workspace.prepare(config, wanted, progress)
        inputs = TrialInputs(
            config.settings,
            examples.task,
            examples.for_student,
            student.model,
            prepared.teacher_width,
            prepared.source,
            student.folder,
            workspace.held_out_source(config, student.layers, progress),
        )
        about = About(
            identity=prepared.record | ({"scores": NO_SCORES} if config.store_alone else {}),
            notes={
                "id": config.id,
                "config": config.model_dump(mode="json"),
                "student_name": config.student_name,
                "head": examples.task.head.record(),
                "teacher_metrics": workspace.teacher_metrics(progress),
            },
        )
        return run_prepared(inputs, folder, workspace.options(config), about, progress)
