"""The verdict at an evaluation: predict the validation split, score it beside training, compare with the targets."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from maskperf.config import EvaluationConfig, has_targets, meets_targets
from maskperf.data.images.loader import evaluation_batches, feeding_for
from maskperf.engine.distributed import all_say, share_from_first
from maskperf.evaluation.predict import batch_size_for, collected, detect_all, gathered
from maskperf.evaluation.results import BoxResults, MaskResults, PackedTable
from maskperf.evaluation.scores import GroundTruth, Scores, agree, score
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.run.session import OpenedData, Session

Found = tuple[BoxResults, MaskResults]


@dataclass(frozen=True)
class Judgement:
    """What the first process found at an evaluation, the same in every process."""

    box_ap: float
    mask_ap: float
    status: str  # as the run would end now: "success", "done" (it has no targets) or "aborted"
    scores: Scores | None  # first process only
    found: Found | None  # first process only
    seconds: float  # of predicting and of scoring
    differences: tuple[str, ...] = ()  # between the fast engine and the official one, once `confirm` has looked

    @property
    def is_final(self) -> bool:
        """Whether the run ends here, even if it has epochs left."""
        return self.status == "success"


@dataclass(frozen=True, kw_only=True)
class TrainedEpoch:
    """An epoch whose weights are judged."""

    epoch: int
    step: int  # the last one of the epoch
    mean_loss: float
    images_per_second: float
    is_last: bool  # the recipe has no steps or epochs left


class Evaluation:
    """One evaluation: the model has done its part, and training goes on while threads do theirs.

    Those of every process turn its detections into results, which are gathered when all have; then one of the first
    process scores all of them. Every call is made by all processes at the same step.
    """

    def __init__(self, session: Session, truth: GroundTruth | None, trained: TrainedEpoch):
        self.session = session
        self.trained = trained
        self._truth = truth
        self._seconds = 0.0
        self._coding: Sequence[Future[PackedTable]] = ()
        self._scoring: Future[tuple[Scores, Found, float]] | None = None  # once gathered, in the first process
        self._is_gathered = False

    def predict(self, data: OpenedData, model: MaskRcnn) -> None:
        """Find what the model, as it is now, sees in this process's share of the validation split."""
        config, topology = self.session.config, self.session.topology
        self.session.log.evaluation_start(self.trained.epoch)
        start = time.monotonic()
        batches = evaluation_batches(
            data.val,
            config.data,
            batch_size=batch_size_for(config.evaluation, topology.device),
            rank=topology.rank,
            world=topology.world,
            pin_memory=topology.device.type == "cuda",
            feeding=feeding_for(topology.device),
        )
        self._coding = detect_all(model, batches, data.train.category_ids, topology.device)
        self._seconds = time.monotonic() - start

    def is_known(self) -> bool:
        """Return whether the first process has the scores; gathers the results instead where that is what is next.

        The answer is the same in every process: one number of each travels.
        """
        topology = self.session.topology
        if self._is_gathered:
            return all_say(self._scoring is None or self._scoring.done(), topology)
        if all_say(all(table.done() for table in self._coding), topology):
            self.gather()
        return False

    def gather(self) -> None:
        """Bring the results of all processes to the first one, waiting for them if need be, and has them scored."""
        if self._is_gathered:
            return
        self._is_gathered = True
        tables = gathered(self._coding, self.session.topology)
        if self.session.topology.is_first:
            scorer = ThreadPoolExecutor(1, thread_name_prefix="maskperf-scorer")
            self._scoring = scorer.submit(_scored, tables, self._truth, self.session.config.evaluation)
            scorer.shutdown(wait=False)  # its thread ends with this one task

    def judgement(self) -> Judgement:
        """Return the verdict, in every process at once; waits for the scores."""
        self.gather()
        session, targets = self.session, self.session.config.evaluation
        scores, found, numbers = None, None, None
        if self._scoring is not None:
            scores, found, seconds = self._scoring.result()
            limits = {"box_target": targets.box_target, "mask_target": targets.mask_target}
            status = "aborted"
            if meets_targets(scores.box_ap, scores.mask_ap, **limits):
                status = "success"
            elif self.trained.is_last and not has_targets(**limits):
                status = "done"
            numbers = scores.box_ap, scores.mask_ap, status, self._seconds + seconds
        box_ap, mask_ap, status, seconds = share_from_first(numbers, session.topology)
        session.log.evaluation_stop(self.trained.epoch, box_ap, mask_ap)
        return Judgement(box_ap=box_ap, mask_ap=mask_ap, status=status, scores=scores, found=found, seconds=seconds)


def _scored(tables: Sequence[PackedTable], truth: GroundTruth, config: EvaluationConfig) -> tuple[Scores, Found, float]:
    start = time.monotonic()
    found = collected(tables)
    scores = score(truth, *found, engine=config.engine, max_detections=config.max_detections)
    return scores, found, time.monotonic() - start


def confirm(session: Session, data: OpenedData, judgement: Judgement) -> Judgement:
    """Return the judgement that a run ends with, after the official engine has looked at the same detections.

    The clock has stopped: the fast engine decides, and the official one, some fifty times as slow, confirms. A number
    in which they differ takes the success back, in the log as well, and so does a confirmation that is cut short.
    """
    config, topology = session.config.evaluation, session.topology
    differences = ()
    if topology.is_first and judgement.status != "aborted" and config.engine != "official":
        session.say("the clock has stopped; pycocotools now confirms the scores")
        try:
            official = score(data.truth, *judgement.found, engine="official", max_detections=config.max_detections)
        except BaseException:
            session.log.withdraw("pycocotools did not come to its end, so that nobody has confirmed the scores")
            raise
        differences = tuple(agree(judgement.scores, official))
    differences = share_from_first(differences, topology)
    if not differences:
        return judgement
    session.log.withdraw("the fast COCO engine and the official one do not agree")
    return replace(judgement, status="aborted", differences=differences)
