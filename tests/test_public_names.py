"""`import maskperf`: a few public names, each imported at its first use."""

import subprocess
import sys

import pytest

import maskperf


@pytest.mark.parametrize("name", maskperf.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(maskperf, name) is not None
    assert name in dir(maskperf)


def test_a_recipe_can_be_changed_and_built_with_public_names_alone():
    config = maskperf.with_overrides(maskperf.RECIPES["demo"](), ["model.fpn_channels=16"])
    model, _ = maskperf.build_model(config.model, seed=1)
    assert isinstance(config, maskperf.RunConfig) and isinstance(model, maskperf.MaskRcnn)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_names():
    with pytest.raises(AttributeError, match="no attribute 'MaskRCNN'.*MaskRcnn"):
        maskperf.MaskRCNN  # noqa: B018


def test_the_import_loads_neither_torch_nor_numpy():
    code = "import sys, maskperf; maskperf.RunConfig; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
