"""The evaluations of a run: each is scored while the next epoch trains; all processes learn the verdict at one step."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from maskperf.config import RunConfig, has_targets, meets_targets
from maskperf.engine.average import WeightAverage
from maskperf.engine.distributed import all_true, share_from_first
from maskperf.errors import LostRunError
from maskperf.evaluation.detection_limit import most_counted
from maskperf.evaluation.predict import batch_size_for, collected, detect_all, gathered
from maskperf.evaluation.results import Results, ResultTable
from maskperf.evaluation.scores import GroundTruth, Scores, agree, score
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.run.collapse import evaluation_collapse
from maskperf.run.data import OpenedData, split_batches
from maskperf.run.plateau import find_plateau
from maskperf.run.progress import working
from maskperf.run.recorder import StepRecorder
from maskperf.run.session import Session, save_best_model
from maskperf.schema import EpochRow, TrainedEpoch

ENGINES_DIFFER = "the fast COCO engine and the official one do not agree"


@dataclass(frozen=True)
class Scored:
    """The detections of all processes with their scores, in the first process."""

    scores: Scores
    found: tuple[Results, Results]  # boxes and masks
    seconds: float


@dataclass(frozen=True)
class Training:
    """What a run trains, and where its numbers go."""

    data: OpenedData
    model: MaskRcnn
    optimizer: torch.optim.Optimizer
    recorder: StepRecorder
    steps_per_epoch: int
    average: WeightAverage  # evaluated and saved in place of the weights, unless its decay is 0


@dataclass(frozen=True)
class Verdict:
    """The outcome of one evaluation, the same in every process."""

    box_ap: float
    mask_ap: float
    status: str  # of the run if it ended now: "success", "done" (it has no targets) or "aborted"
    scored: Scored | None  # first process only
    seconds: float  # of predicting and of scoring
    reason: str = ""  # why a run without success ends, where its steps are not used up
    differences: tuple[str, ...] = ()  # between the fast engine and the official one, after `confirm`


class Evaluation:
    """One evaluation: the model predicts when this is made, and training goes on while threads do the rest.

    In every process threads turn its detections into results; when all are ready they are gathered, and a thread of
    the first process scores them. Every call is made by all processes at the same step.
    """

    def __init__(self, session: Session, training: Training, trained: TrainedEpoch):
        config, topology, data = session.config, session.topology, training.data
        batch_size = batch_size_for(config.evaluation, topology.device)
        self.trained = trained
        self._session = session
        self._truth = data.truth
        self._scoring: Future[Scored] | None = None  # once gathered, in the first process
        self._is_gathered = False
        session.log.evaluation_start(trained.epoch)
        start = time.monotonic()
        batches = split_batches(data.val, config, topology)
        progress = training.recorder.progress
        with progress.doing(f"evaluating epoch {trained.epoch}"):
            batches = progress.counted(batches, batch_size * topology.world, len(data.val.image_ids))
            self._coding = detect_all(training.model, batches, data.train.category_ids, topology.device)
        self._seconds = time.monotonic() - start

    def is_known(self) -> bool:
        """Return whether the first process has the scores, the same answer in every process.

        Gathers the results where that is the next thing to do. Cost: one number of each process travels.
        """
        topology = self._session.topology
        if self._is_gathered:
            return all_true(self._scoring is None or self._scoring.done(), topology)
        if all_true(all(table.done() for table in self._coding), topology):
            self._gather()
        return False

    def verdict(self) -> Verdict:
        """Return the verdict, in every process at once; waits for the scores."""
        self._gather()
        session, config = self._session, self._session.config.evaluation
        scored = self._scoring.result() if self._scoring is not None else None
        numbers = 0.0, 0.0, 0.0  # in other processes, which get those of the first
        if scored is not None:
            numbers = scored.scores.box_ap, scored.scores.mask_ap, self._seconds + scored.seconds
        box_ap, mask_ap, seconds = share_from_first(numbers, session.topology)
        session.log.evaluation_stop(self.trained.epoch, box_ap, mask_ap)
        status = "aborted"
        if meets_targets(box_ap, mask_ap, box_target=config.box_target, mask_target=config.mask_target):
            status = "success"
        elif self.trained.is_last and not has_targets(config.box_target, config.mask_target):
            status = "done"
        return Verdict(box_ap=box_ap, mask_ap=mask_ap, status=status, scored=scored, seconds=seconds)

    def _gather(self) -> None:
        """Bring the results of all processes to the first one, waiting for them if need be, and start the scoring."""
        if self._is_gathered:
            return
        self._is_gathered = True
        tables = gathered(self._coding, self._session.topology)
        if self._truth is not None:
            scorer = ThreadPoolExecutor(1, thread_name_prefix="maskperf-scorer")
            self._scoring = scorer.submit(_scored, tables, self._truth, self._session.config)
            scorer.shutdown(wait=False)  # its thread ends with this one task


def _scored(tables: Sequence[ResultTable], truth: GroundTruth, config: RunConfig) -> Scored:
    start = time.monotonic()
    found = collected(tables)
    scores = score(truth, *found, engine=config.evaluation.engine, max_detections=most_counted(config.model))
    return Scored(scores, found, time.monotonic() - start)


class Evaluations:
    """The evaluation that is being scored, if there is one, and the last verdict.

    Evaluated are the weights at the end of an epoch, whatever is trained meanwhile; the weights file stays theirs until
    the verdict is known. Every call is made by all processes at the same step.
    """

    def __init__(self, session: Session, training: Training):
        self.verdict: Verdict | None = None
        self._session = session
        self._training = training
        self._pending: Evaluation | None = None

    @property
    def is_final(self) -> bool:
        """Whether the run ends with the last verdict, even if it has epochs left."""
        return self.verdict is not None and (self.verdict.status == "success" or bool(self.verdict.reason))

    @property
    def pending(self) -> TrainedEpoch | None:
        """The epoch whose verdict is not known yet."""
        return None if self._pending is None else self._pending.trained

    def start(self, trained: TrainedEpoch) -> None:
        """Predict the validation split and leave the rest to threads. The verdict before must have been taken."""
        with self._session.account.measure("evaluation"):
            self._pending = Evaluation(self._session, self._training, trained)

    def take_known(self, update: int) -> None:
        """Take the verdict if the first process has it; `update`: the steps trained so far.

        Errors: LostRunError where the APs fell to nothing.
        """
        if self._pending is None:
            return
        with self._session.account.measure("evaluation"):
            is_known = self._pending.is_known()
        if is_known:
            self.take(update)

    def take(self, update: int) -> None:
        """Take the verdict, waiting for it if need be; nothing where none is due. Otherwise as `take_known`."""
        if self._pending is not None:
            self._take(self._pending, update)
            self._watch(update)

    def rescues(self, lost_step: int) -> bool:
        """Return whether the weights that are being evaluated meet the targets: later steps do not matter then."""
        if self._pending is None:
            return False
        self._take(self._pending, lost_step)
        return self.is_final

    def _take(self, evaluation: Evaluation, update: int) -> None:
        """Wait for the verdict, the same in all processes, and record it."""
        session, recorder, trained = self._session, self._training.recorder, evaluation.trained
        self._pending = None
        with session.account.measure("evaluation"), recorder.progress.doing(f"scoring epoch {trained.epoch}"):
            self.verdict = evaluation.verdict()
        row = EpochRow(
            epoch=trained.epoch,
            step=trained.step,
            mean_loss=trained.mean_loss,
            box_ap=self.verdict.box_ap,
            mask_ap=self.verdict.mask_ap,
            images_per_second=trained.images_per_second,
            seconds_since_start=session.account.total_seconds(),
            evaluation_seconds=self.verdict.seconds,
        )
        recorder.evaluation(row)
        if best_row(recorder.counted.rows) is row:
            with session.account.measure("saving"):
                save_best_model(session)
        if not (self.is_final or trained.is_last):
            self._lose_patience()
        if self.is_final and update > trained.step:
            beyond = update - trained.step
            session.say(f"discarded: the steps beyond epoch {trained.epoch}, trained while it was scored ({beyond})")

    def _lose_patience(self) -> None:
        """End the run where the last evaluations, as many as it has patience for, were no better than one before."""
        rows, config = self._training.recorder.counted.rows, self._session.config.evaluation
        best = best_row(rows)
        since = len(rows) - 1 - rows.index(best)
        if not config.patience or since < config.patience:
            return
        assert self.verdict is not None
        reason = f"stopped early: none of {since} evaluations was better than that of epoch {best.epoch}"
        status = "aborted" if has_targets(config.box_target, config.mask_target) else "done"
        self.verdict = replace(self.verdict, status=status, reason=reason)
        self._session.notice(reason)

    def _watch(self, update: int) -> None:
        """Note a plateau when it begins.

        Errors: LostRunError where the APs fell to nothing; its step is the last one trained, that of the weights.
        """
        recorder, config = self._training.recorder, self._session.config
        last = recorder.counted.rows[-1]
        points = [(row.epoch, row.box_ap, row.mask_ap) for row in recorder.counted.rows]
        collapse = evaluation_collapse(points)
        if collapse is not None:
            error = LostRunError(f"step {last.step} (epoch {last.epoch}): {collapse.text}", step=update)
            recorder.note(error.event, last.step, last.epoch, str(error))
            if config.system.on_collapse == "stop":
                raise error
        plateau = find_plateau(
            points,
            box_target=config.evaluation.box_target,
            mask_target=config.evaluation.mask_target,
            steps_per_epoch=self._training.steps_per_epoch,
            last_decay_step=config.optimizer.decay_steps[-1] if config.optimizer.decay_steps else 0,
        )
        if plateau is not None and not any(event.event == "plateau" for event in recorder.counted.events):
            recorder.note("plateau", last.step, last.epoch, plateau.text)


def best_row(rows: Sequence[EpochRow]) -> EpochRow:
    """Return the evaluation with the highest sum of both APs, of equal ones the first."""
    return max(rows, key=lambda row: row.box_ap + row.mask_ap)


def confirm(session: Session, data: OpenedData, verdict: Verdict) -> Verdict:
    """Return the verdict that a run ends with, after the official engine has scored the same detections.

    The clock has stopped: the fast engine decides, and the official one, some fifty times as slow, confirms. A number
    in which they differ takes the success back, in the log as well, and so does a confirmation that is cut short.
    """
    engine, limit = session.config.evaluation.engine, most_counted(session.config.model)
    scored, differences = verdict.scored, tuple[str, ...]()
    if scored is not None and data.truth is not None and verdict.status != "aborted" and engine != "official":
        session.say("the clock has stopped; pycocotools now confirms the scores")
        try:
            with working("pycocotools confirms the scores", enabled=True):
                official = score(data.truth, *scored.found, engine="official", max_detections=limit)
        except BaseException:
            session.log.withdraw("pycocotools did not come to its end, so that nobody has confirmed the scores")
            raise
        differences = tuple(agree(scored.scores, official))
    differences = share_from_first(differences, session.topology)
    if not differences:
        return verdict
    session.log.withdraw(ENGINES_DIFFER)
    return replace(verdict, status="aborted", differences=differences)
