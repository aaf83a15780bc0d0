"""A plugin of pytest for tests marked `gpu` on the null CUDA: python -m pytest -p null_comparisons -m gpu

Numbers of a device that computes nothing are not right. A test that fails by an assertion has come as far as its
comparison, which is told as an expected failure; any other error is one.
"""

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if call.when == "call" and call.excinfo is not None and call.excinfo.errisinstance(AssertionError):
        report.outcome, report.wasxfail = "skipped", "compares numbers"
    return report
