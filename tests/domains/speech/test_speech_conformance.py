"""The speech domain as the core sees it, and its shipped teacher."""

from __future__ import annotations

from xdistill.config import compose
from xdistill.sections import build_domain
from xdistill.testing.conformance import check_domain, check_model


def test_domain_and_shipped_teacher_keep_their_contracts() -> None:
    domain = build_domain(compose(["domain=speech"]))
    batch = domain.data(2, 0).batch(0, 0, 1)
    checks = [*check_domain(domain), *check_model(domain.teacher(), domain.process, batch.like, batch.cond)]
    failed = [c for c in checks if not c.ok]
    assert not failed, failed
