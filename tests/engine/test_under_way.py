from functools import partial

import torch
from small_batches import SMALL, varied_batch
from test_captured import ALONE, CONFIG, SMALLER, Repeater

from maskperf.engine.build import build_model
from maskperf.engine.forward import training_losses
from maskperf.engine.gradients import Gradients
from maskperf.engine.graphs import CapturedSteps
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.step import StepResult, train_step
from maskperf.engine.stopwatch import Stopwatch
from maskperf.engine.under_way import Step, StepsUnderWay

CPU = torch.device("cpu")


def result_of(update, dropped):
    return StepResult(
        losses=torch.full((5,), float(update)),
        dropped_masks=torch.tensor(dropped),
        not_finite=torch.zeros(1, 3),
        learning_rate=0.1,
        images=2,
        stopwatch=Stopwatch(CPU),
    )


def numbers_of(steps):
    return [(step.update, int(step.result.dropped_masks)) for step in steps]


def test_a_step_without_room_is_done_again_while_the_next_is_under_way_and_stays_in_order():
    again = []

    def train(batches, *, update, all_masks):
        assert all_masks
        again.append((batches, update))
        return result_of(update, 0)

    under_way = StepsUnderWay(train, may_drop_masks=True)
    found, batches = [], [[varied_batch(seed, (1,))] for seed in range(4)]
    for update, dropped in enumerate((0, 3, 0, 1), start=1):
        found.append(numbers_of(under_way.add(Step(update, 1, result_of(update, dropped), 0.5), batches[update - 1])))
    assert found == [[], [(1, 0)], [(2, 0)], [(3, 0)]]
    assert [update for _, update in again] == [2] and again[0][0] is batches[1]  # when step 3 was under way
    assert numbers_of(under_way.rest()) == [(4, 0)]
    assert [update for _, update in again] == [2, 4] and again[1][0] is batches[3]
    assert under_way.rest() == []


def test_where_no_step_may_drop_masks_nothing_is_read():
    under_way = StepsUnderWay(train_step, may_drop_masks=False)
    step = Step(1, 1, result_of(1, 7), 0.0)
    assert under_way.add(step, []) == [step] and under_way.rest() == []


def small_training(num_mask_slots):
    model = build_model(SMALL, 0)[0]
    options = {"gradients": Gradients(model, ALONE), "recorder": Repeater(), "say": print}
    captured = CapturedSteps(model, [SMALLER], **options, num_mask_slots=num_mask_slots)
    captured.record([varied_batch(0, (2, 1))], parts=1)
    always = {"config": CONFIG, "topology": ALONE, "captured": captured}
    return model, partial(train_step, model, build_optimizer(model, CONFIG), **always)


def test_weights_are_those_of_every_batch_once_the_crowded_one_a_step_later():
    batches = [varied_batch(seed, (2, 1)) for seed in range(4)]
    needed = [int(training_losses(build_model(SMALL, 0)[0], batch, 1).dropped_masks) + 1 for batch in batches]
    crowded = needed.index(max(needed))
    assert needed.count(max(needed)) == 1 and crowded < 3  # so one batch finds too few places, and another follows
    model, train = small_training(num_mask_slots=max(needed) - 1)
    under_way, settled = StepsUnderWay(train, may_drop_masks=True), []
    for update, batch in enumerate(batches, start=1):
        result = train([batch], update=update, all_masks=False)
        assert bool(result.dropped_masks) == (update - 1 == crowded)
        settled += under_way.add(Step(update, 1, result, 0.0), [batch])
    settled += under_way.rest()
    assert numbers_of(settled) == [(update, 0) for update in (1, 2, 3, 4)]

    plain, train = small_training(num_mask_slots=None)
    order = [number for number in range(4) if number != crowded]
    order.insert(crowded + 1, crowded)  # after the step that was under way
    losses = {number: train([batches[number]], update=number + 1, all_masks=True).losses for number in order}
    for (name, found), wanted in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7, msg=name)
    for step in settled:
        torch.testing.assert_close(step.result.losses, losses[step.update - 1], rtol=1e-4, atol=1e-5)


def test_a_step_without_room_leaves_weights_and_momentum_alone():
    batch = varied_batch(0, (2, 1))
    model, train = small_training(num_mask_slots=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert train([batch], update=1, all_masks=False).dropped_masks > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert train([batch], update=1, all_masks=True).dropped_masks == 0
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
