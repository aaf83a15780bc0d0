"""The service of docs/predict.md answers with what the function finds."""

import re
from pathlib import Path

import pytest
from small_weights import write_small_weights

import maskperf

DOCS = Path(__file__).resolve().parents[2] / "docs" / "predict.md"


def test_the_service_of_the_documentation_answers(tmp_path, monkeypatch):
    for module in ("fastapi", "httpx2", "python_multipart"):
        pytest.importorskip(module)
    from fastapi.testclient import TestClient

    weights, _ = write_small_weights(tmp_path, images=1)
    monkeypatch.chdir(tmp_path)
    section = DOCS.read_text(encoding="utf-8").partition("## As a service")[2]
    names: dict = {}
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    exec(compile(code, str(DOCS), "exec"), names)
    photo = next((tmp_path / "demo" / "val2017").iterdir())
    client = TestClient(names["app"])
    with photo.open("rb") as file:
        answer = client.post("/predict", params={"threshold": 0.05}, files={"photo": file})
    assert answer.status_code == 200
    assert answer.json() == maskperf.load(weights).predict(photo, threshold=0.05).to_coco() != []
