"""The verdict at an evaluation: predict the validation split, score it, compare with the targets."""

import time
from dataclasses import dataclass, replace

from maskperf.data.loader import evaluation_batches, feeding_for
from maskperf.engine.distributed import share_from_first
from maskperf.evaluation.predict import batch_size_for, predict
from maskperf.evaluation.results import BoxResults, MaskResults
from maskperf.evaluation.scores import Scores, agree, score
from maskperf.guard.targets import has_targets, meets_targets
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.runner.session import OpenedData, Session


@dataclass(frozen=True)
class Judgement:
    """What the first process found at an evaluation, the same in every process."""

    box_ap: float
    mask_ap: float
    status: str  # as the run would end now: "success", "done" (it has no targets) or "aborted"
    scores: Scores | None  # first process only
    found: tuple[BoxResults, MaskResults]  # empty in the other processes
    seconds: float
    differences: tuple[str, ...] = ()  # between the fast engine and the official one, once `confirm` has looked

    @property
    def is_final(self) -> bool:
        """Whether the run ends here, even if it has epochs left."""
        return self.status == "success"


def judge(session: Session, data: OpenedData, model: MaskRcnn, epoch: int, *, is_last: bool) -> Judgement:
    """Returns the verdict on the model after an epoch; `is_last`: the epochs of the run are used up."""
    config, topology = session.config.evaluation, session.topology
    session.log.evaluation_start(epoch)
    start = time.monotonic()
    batches = evaluation_batches(
        data.val,
        session.config.data,
        batch_size=batch_size_for(config, topology.device),
        rank=topology.rank,
        world=topology.world,
        pin_memory=topology.device.type == "cuda",
        feeding=feeding_for(session.config.speed, topology.device),
    )
    boxes, masks = predict(model, batches, data.train.category_ids, topology)
    scores, status = None, "aborted"
    if topology.is_first:
        limit = config.max_detections
        scores = score(data.truth, boxes, masks, engine=config.engine, max_detections=limit)
        targets = {"box_target": config.box_target, "mask_target": config.mask_target}
        if meets_targets(scores.box_ap, scores.mask_ap, **targets):
            status = "success"
        elif is_last and not has_targets(**targets):
            status = "done"
    box_ap, mask_ap = (scores.box_ap, scores.mask_ap) if scores else (0.0, 0.0)
    box_ap, mask_ap, status = share_from_first((box_ap, mask_ap, status), topology)
    session.log.evaluation_stop(epoch, box_ap, mask_ap)
    return Judgement(
        box_ap=box_ap,
        mask_ap=mask_ap,
        status=status,
        scores=scores,
        found=(boxes, masks),
        seconds=time.monotonic() - start,
    )


def confirm(session: Session, data: OpenedData, judgement: Judgement) -> Judgement:
    """Returns the judgement that a run ends with, after the official engine has looked at the same detections.

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
