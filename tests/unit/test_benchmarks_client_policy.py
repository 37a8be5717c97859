"""The simulated comparison of deliveries: that the simulation does what it says, and what the SDK's delivery gains."""

from __future__ import annotations

import pytest

from benchmarks.client_policy import FAULTS, POLICIES, Result, page, run, table

SDK, SHARES = "and ejection (the SDK)", "shares"


def found(fault: str, policy: str) -> Result:
    return run(FAULTS[fault], POLICIES[policy], seed=5, seconds=10.0, rate=60.0)


@pytest.mark.parametrize("fault", FAULTS)
def test_p1_no_error_reaches_the_caller_and_copies_stay_within_a_tenth_of_the_calls(fault: str) -> None:
    sdk = found(fault, SDK)
    assert sdk.errors == 0 and len(sdk.total_ms) > 500
    # The two that may be sent before any call was made.
    assert sdk.statistics.hedges + sdk.statistics.trials <= 2 + sdk.statistics.calls / 10


@pytest.mark.parametrize(
    "fault",
    [
        "slow, 10 times",
        "a tenth of its calls slow, 15 times",
        "frozen, 5 s on and off",
        "lying: four times what it says",
    ],
)
def test_the_tail_is_far_shorter_than_without_hedges_and_ejection(fault: str) -> None:
    sdk, plain = found(fault, SDK), found(fault, SHARES)
    assert sdk.at(0.99) < 0.6 * plain.at(0.99) and sdk.late_share < plain.late_share


def test_a_node_that_errs_gets_little_more_to_do() -> None:
    fault = "erring, all of its calls"
    assert found(fault, SDK).faulty_share < 0.5 * found(fault, SHARES).faulty_share


def test_without_a_fault_shares_are_kept() -> None:
    assert found("none", SDK).faulty_share == pytest.approx(0.35, abs=0.07)


def test_the_page_has_a_row_for_each_policy() -> None:
    sdk = found("none", SDK)
    text = page([table("none", {SDK: sdk, SHARES: sdk})])
    assert text.count("\n| and ejection (the SDK) |") == 1 and "## Fault: none" in text
