from dataclasses import replace

import pytest

from maskperf.bench.child import PEERS
from maskperf.bench.names import QUICK, SUMMARIES
from maskperf.bench.plan import CASES, IMAGES_OF_BATCH, Plan, peer_numbers
from maskperf.bench.plan import refuse_other_network as refuse
from maskperf.bench.switches import ALL_OFF, ALL_ON, TECHNIQUES, loss_difference, waterfall
from maskperf.config import ModelConfig, SpeedConfig
from maskperf.errors import ConfigError
from maskperf.recipes import coco, demo
from maskperf.techniques import TECHNIQUE_NAMES, chosen_techniques, plain


def test_every_case_has_a_summary_and_its_scripts_exist():
    assert {case.benchmark for case in CASES} | {"startup", "demo", "gpu"} == set(SUMMARIES)
    assert set(QUICK) <= set(SUMMARIES)
    assert [peer.script for case in CASES for peer in case.peers if not (PEERS / peer.script).is_file()] == []


def test_each_benchmark_has_its_own_number_of_images_by_default(tmp_path):
    plan = Plan(config=coco(), cache=tmp_path)
    assert (plan.images_of("step"), plan.images_of("scored")) == (IMAGES_OF_BATCH, 5000)
    assert replace(plan, images=3).images_of("scored") == 3


def test_a_pooled_quota_of_proposals_is_shared_out_to_the_images_of_the_peer():
    assert peer_numbers(ModelConfig(), images=2)["rpn_post_nms_top_n_train"] == 1000
    assert peer_numbers(ModelConfig(proposal_quota="per_image"), images=2)["rpn_post_nms_top_n_train"] == 2000
    assert peer_numbers(ModelConfig(), images=2)["box_batch_size_per_image"] == 512


def test_the_peer_is_only_compared_with_the_same_network():
    refuse(ModelConfig())
    refuse(ModelConfig(roi_samples_per_image=64, num_classes=9))
    with pytest.raises(ConfigError, match="model.stage_blocks, .*Fix: leave out --peer"):
        refuse(demo().model)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_waterfall_switches_on_one_after_another(device):
    rows = waterfall(device)
    assert rows[0].name == ALL_OFF and chosen_techniques(rows[0].speed) == plain()
    assert rows[-1].name == ALL_ON and rows[-1].speed == SpeedConfig()
    names = [name for name, (devices, _) in TECHNIQUES.items() if device in devices]
    assert [row.name for row in rows[1:-1]] == [f"+ {name}" for name in names]
    for before, after, name in zip(rows, rows[1:-1], names, strict=False):
        assert changed(before.speed, after.speed) == [name]
    assert all(row.summary for row in rows)


def changed(first, second):
    names = [*TECHNIQUE_NAMES] if first.precision == second.precision else ["precision", *TECHNIQUE_NAMES]
    before, after = chosen_techniques(first), chosen_techniques(second)
    return [name for name in names if name == "precision" or getattr(before, name) != getattr(after, name)]


def test_every_switch_is_in_the_waterfall_of_some_device_or_decides_what_the_batches_are():
    assert {"precision", *TECHNIQUE_NAMES} - set(TECHNIQUES) == {"aspect_buckets", "device_preprocessing"}


def test_the_loss_difference_is_that_of_the_worst_term():
    plain = {"mask": 2.0, "box": 0.5}
    assert loss_difference(plain, plain) == 0.0
    assert loss_difference({"mask": 2.0, "box": 0.505}, plain) == pytest.approx(0.01)
