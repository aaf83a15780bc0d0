"""The evaluations of a run: each is scored while the next epoch trains; all processes learn the verdict at one step."""

from maskperf.run.evaluator import Evaluation, Judgement, TrainedEpoch
from maskperf.run.session import Session, keep_best_model
from maskperf.run.stop import Training, watch_evaluations
from maskperf.run.summary import EpochRecord, best_record


class Evaluations:
    """The evaluation that is being scored, if there is one, and the last verdict.

    What is judged are the weights at the end of an epoch, whatever is trained meanwhile; the file of weights stays
    theirs until the verdict is in. Every call is made by all processes at the same step.
    """

    def __init__(self, session: Session, training: Training):
        self.judgement: Judgement | None = None
        self._session = session
        self._training = training
        self._pending: Evaluation | None = None

    @property
    def is_final(self) -> bool:
        """Whether the run ends with the last verdict, even if it has epochs left."""
        return self.judgement is not None and self.judgement.is_final

    def start(self, trained: TrainedEpoch) -> None:
        """Predict the validation split and leaves the rest to threads. The verdict before must have been taken."""
        training = self._training
        with self._session.account.measure("evaluation"):
            self._pending = Evaluation(self._session, training.data.truth, trained)
            self._pending.predict(training.data, training.model)

    def take_known(self, update: int) -> None:
        """Take the verdict in if the first process has it; `update`: the steps trained so far.

        Errors: LostRunError where the APs fell to nothing.
        """
        if self._pending is None:
            return
        with self._session.account.measure("evaluation"):
            is_known = self._pending.is_known()
        if is_known:
            self.take(update)

    def take(self, update: int) -> None:
        """Take the verdict in, waiting for it if need be; nothing where none is due. Otherwise as `take_known`."""
        if self._pending is not None:
            self._take(self._pending, update)
            watch_evaluations(self._session, self._training, update)

    def rescues(self, lost_step: int) -> bool:
        """Return whether the weights that are being judged meet the targets: what came later does not matter then."""
        if self._pending is None:
            return False
        self._take(self._pending, lost_step)
        return self.is_final

    def _take(self, evaluation: Evaluation, update: int) -> None:
        """Wait for the verdict, the same in all processes, and writes down everything about it."""
        session, recorder, trained = self._session, self._training.recorder, evaluation.trained
        self._pending = None
        with session.account.measure("evaluation"):
            self.judgement = evaluation.judgement()
        record = EpochRecord(
            epoch=trained.epoch,
            step=trained.step,
            mean_loss=trained.mean_loss,
            box_ap=self.judgement.box_ap,
            mask_ap=self.judgement.mask_ap,
            images_per_second=trained.images_per_second,
            seconds_since_start=session.account.total_seconds(),
            evaluation_seconds=self.judgement.seconds,
        )
        recorder.evaluation(record)
        if best_record(recorder.records) is record:
            with session.account.measure("saving"):
                keep_best_model(session)
        if self.is_final and update > trained.step:
            beyond = update - trained.step
            session.say(f"discarded: the steps beyond epoch {trained.epoch}, trained while it was scored ({beyond})")
