"""A plugin of pytest for tests marked `gpu` on the null CUDA: python -m pytest -p null_comparisons -m gpu

Numbers of a device that computes nothing are not right. A test that fails by an assertion, or by an error inside of
PyTorch's own comparison, has come as far as its comparison, which is told as an expected failure; any other error is
one.
"""

import pytest

COMPARISON = "torch/testing/_comparison.py"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if call.when == "call" and call.excinfo is not None and _compares(call.excinfo):
        report.outcome, report.wasxfail = "skipped", "compares numbers"
    return report


def _compares(found: pytest.ExceptionInfo) -> bool:
    return found.errisinstance(AssertionError) or str(found.traceback[-1].path).endswith(COMPARISON)
