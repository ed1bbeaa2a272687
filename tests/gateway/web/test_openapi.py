"""Schemathesis asks for everything that openapi.json describes: no answer is a server's error, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.dicomweb.multipart import written
from tests.gateway.web.held import HeldStudy, hold
from tests.gateway.web.served import Served, served

ROOT = "/dicom-web"
QUICK, SLOW = 2, 30  # examples of each operation


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("openapi")) as one:
        yield one


@pytest.fixture(scope="module")
def study(site: Served) -> HeldStudy:
    return hold(site)


def ask_everything(site: Served, study: HeldStudy, examples: int) -> int:
    """Each operation with made-up parameters, and with those of what is there. Returns how many answers came."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{site.port}{ROOT}/openapi.json")
    schema.config.base_url = f"http://127.0.0.1:{site.port}{ROOT}"
    real = {"study_uid": study.uid, "series_uid": study.series_uid, "frames": "1", "at": "7FE00010"}
    real["instance_uid"] = study.images[0].SOPInstanceUID
    session, statuses = requests.Session(), list[int]()
    quick = settings(
        max_examples=examples, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.method == "post":
            continue  # whose body Schemathesis does not know how to make

        @quick
        @given(case=operation.as_strategy(), there=st.booleans())
        def ask(case: schemathesis.Case, there: bool) -> None:
            if there and case.path_parameters:
                case.path_parameters |= {name: real[name] for name in case.path_parameters}
            answer = case.call(session=session)
            assert answer.status_code < 500, (case.method, case.formatted_path, answer.text)
            statuses.append(answer.status_code)

        ask()

    @quick
    @given(body=st.binary(max_size=300), wrapped=st.booleans(), study_uid=st.sampled_from(["", f"/{study.uid}"]))
    def store(body: bytes, wrapped: bool, study_uid: str) -> None:
        content = b"".join(written("b", [({}, [body])])) if wrapped else body
        headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
        url = f"http://127.0.0.1:{site.port}{ROOT}/studies{study_uid}"
        assert session.post(url, data=content, headers=headers).status_code in (400, 409)

    store()
    assert {200, 400, 404} <= set(statuses)
    return len(statuses)


def test_no_answer_is_a_server_error(site: Served, study: HeldStudy) -> None:
    assert ask_everything(site, study, QUICK) > 20


@pytest.mark.slow
def test_no_answer_is_a_server_error_whatever_is_asked(site: Served, study: HeldStudy) -> None:
    ask_everything(site, study, SLOW)
