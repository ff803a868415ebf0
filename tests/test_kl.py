"""KL estimators against numbers worked out by hand and exact expectations; controllers against their formula."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ext.kl import AdaptiveKLController, FixedKLController, per_token_kl

ESTIMATORS = ("k1", "k2", "k3")
quick = settings(max_examples=50, deadline=None)
logp = st.floats(-15, 0)
# One way to write the same thing in plain floats.
LOOP = {
    "k1": lambda logp, ref: logp - ref,
    "k2": lambda logp, ref: 0.5 * (logp - ref) * (logp - ref),
    "k3": lambda logp, ref: math.exp(ref - logp) - (ref - logp) - 1,
}
# The policy gives the token 1/2, the reference 1/4: the log-ratio is log 2, and exp(-log 2) = 1/2.
BY_HAND = {"k1": 0.693147, "k2": 0.240227, "k3": 0.5 - 1 + 0.693147}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_value_worked_out_by_hand(estimator):
    logps, ref_logps = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    assert per_token_kl(logps, ref_logps, estimator=estimator).item() == pytest.approx(BY_HAND[estimator], abs=1e-6)


def test_the_default_is_k1():
    logps, ref_logps = torch.tensor([-1.0]), torch.tensor([-3.0])
    assert per_token_kl(logps, ref_logps).tolist() == [2.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@quick
@given(pairs=st.lists(st.tuples(logp, logp), min_size=1, max_size=6))
def test_equals_a_plain_loop(estimator, pairs):
    logps, ref_logps = torch.tensor(pairs, dtype=torch.float64).T
    expected = [LOOP[estimator](*pair) for pair in pairs]
    found = per_token_kl(logps, ref_logps, estimator=estimator)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.fixture
def policy_and_reference():
    torch.manual_seed(0)
    logits = torch.randn(2, 50, dtype=torch.float64)
    return logits[0].requires_grad_(), logits[1].log_softmax(-1)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_mean_over_the_policy_is_the_kl_divergence_of_policy_from_reference(estimator, policy_and_reference):
    logits, ref_logps = policy_and_reference
    logps = logits.detach().log_softmax(-1)
    exact = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (logps, ref_logps)))
    expectation = (logps.exp() * per_token_kl(logps, ref_logps, estimator=estimator)).sum()
    torch.testing.assert_close(expectation, exact)


def test_mean_gradient_of_k2_is_the_gradient_of_the_kl_divergence(policy_and_reference):
    logits, ref_logps = policy_and_reference
    logps = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((logps.exp() * (logps - ref_logps)).sum(), logits, retain_graph=True)
    estimate = (logps.exp().detach() * per_token_kl(logps, ref_logps, estimator="k2")).sum()
    torch.testing.assert_close(torch.autograd.grad(estimate, logits)[0], exact)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_agrees_with_finite_differences(estimator):
    logps = torch.tensor([-3.0, -1.0, -30.0], dtype=torch.float64, requires_grad=True)  # the last on the tangent of k3
    ref_logps = torch.tensor([-1.0, -3.0, -5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: per_token_kl(x, ref_logps, estimator=estimator), [logps], atol=1e-3)


@quick
@given(logp=st.floats(-60, 0), ref_logp=st.floats(-60, 0), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_k2_and_k3_are_never_negative(logp, ref_logp, dtype):
    logps, ref_logps = torch.tensor([logp], dtype=dtype), torch.tensor([ref_logp], dtype=dtype)
    for estimator in ("k2", "k3"):
        assert per_token_kl(logps, ref_logps, estimator=estimator).item() >= 0
        assert per_token_kl(logps, logps, estimator=estimator).item() == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_large_differences_stay_finite_and_are_pulled_back(estimator, gap):
    logps = torch.tensor([gap]).requires_grad_()
    kl = per_token_kl(logps, torch.zeros(1), estimator=estimator)
    kl.sum().backward()
    assert kl.isfinite().all()
    assert logps.grad.square().isfinite().all()  # the gradient norm squares it
    if estimator != "k1":
        assert logps.grad.item() * gap > 0  # a step downhill brings policy and reference together


def test_k3_goes_on_along_its_tangent():
    below, at, above, beyond = per_token_kl(
        -torch.tensor([20 - 1e-6, 20, 20 + 1e-6, 30], dtype=torch.float64),
        torch.zeros(4, dtype=torch.float64),
        estimator="k3",
    ).tolist()
    assert above - at == pytest.approx(at - below, rel=1e-4)  # no jump, no kink
    assert beyond == pytest.approx(math.exp(20) - 21 + 10 * (math.exp(20) - 1))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_half_precision_is_subtracted_in_float32(estimator):
    logps, ref_logps = torch.tensor([-2.0], dtype=torch.bfloat16), torch.tensor([-2.001])
    found = per_token_kl(logps, ref_logps, estimator=estimator)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(LOOP[estimator](-2.0, -2.001), rel=1e-2)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 1\)"):
        per_token_kl(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"'k1', 'k2' or 'k3', got 'k4'"):
        per_token_kl(torch.zeros(2), torch.zeros(2), estimator="k4")


# With coefficient 0.2, target 6, horizon 10000 and 500 sequences, n / horizon = 0.05.
@pytest.mark.parametrize(
    ("kl", "coef"),
    [
        (6.0, 0.2),  # on target
        (6.6, 0.2 * 1.005),  # error 0.1
        (5.4, 0.2 * 0.995),  # error -0.1
        (600.0, 0.2 * 1.01),  # error clipped to 0.2
        (-3.0, 0.2 * 0.99),  # a k1 estimate may be negative: clipped to -0.2
    ],
)
def test_adaptive_controller_worked_out_by_hand(kl, coef):
    controller = AdaptiveKLController(0.2, target=6.0, horizon=10_000)
    controller.update(kl, n_steps=500)
    assert controller.coef == pytest.approx(coef, rel=1e-12)


def test_adaptive_controller_holds_a_kl_that_falls_with_the_coefficient():
    controller = AdaptiveKLController(0.01, target=6.0, horizon=1000)
    for _ in range(2000):
        controller.update(3 / controller.coef, n_steps=64)  # a policy that reaches KL 6 at the coefficient 0.5
    assert controller.coef == pytest.approx(0.5, rel=1e-3)


def test_fixed_controller_stays():
    controller = FixedKLController(0.1)
    controller.update(torch.tensor(100.0), n_steps=64)
    assert controller.coef == 0.1


@pytest.mark.parametrize("controller", [FixedKLController(0.1), AdaptiveKLController(0.1, 6.0, 1000)])
@pytest.mark.parametrize("kl", [float("nan"), float("inf"), torch.tensor(float("-inf"))])
def test_a_kl_that_is_not_finite_is_refused_and_leaves_no_trace(controller, kl):
    with pytest.raises(ValueError, match="the policy has diverged"):
        controller.update(kl, n_steps=1)
    assert controller.coef == 0.1


def test_a_batch_beyond_the_horizon_is_refused():
    controller = AdaptiveKLController(0.1, 6.0, horizon=100)
    controller.update(0.0, n_steps=499)
    assert controller.coef > 0
    with pytest.raises(ValueError, match="raise the horizon, now 100, above 100"):
        controller.update(0.0, n_steps=500)


@pytest.mark.parametrize("coef", [-0.1, float("nan"), float("inf")])
def test_coefficients_that_are_refused(coef):
    for make in (FixedKLController, lambda coef: AdaptiveKLController(coef, 6.0, 1000)):
        with pytest.raises(ValueError, match="KL coefficient must be 0 or above"):
            make(coef)


@pytest.mark.parametrize(
    ("target", "horizon", "wrong"), [(0.0, 10, "target"), (float("nan"), 10, "target"), (6, 0, "horizon")]
)
def test_targets_and_horizons_that_are_refused(target, horizon, wrong):
    with pytest.raises(ValueError, match=f"The {wrong} of the adaptive KL controller must be above 0"):
        AdaptiveKLController(0.2, target, horizon)


def test_adaptive_controller_goes_on_bit_for_bit():
    first, second = (AdaptiveKLController(0.2, 6.0, 1000) for _ in range(2))
    first.update(7.3, n_steps=17)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for controller in (first, second):
        controller.update(2.1, n_steps=31)
    assert first.coef == second.coef != 0.2


def test_a_state_of_another_run_is_refused():
    fixed, adaptive = FixedKLController(0.2), AdaptiveKLController(0.2, 6.0, 1000)
    fixed.load_state_dict(FixedKLController(0.2).state_dict())
    with pytest.raises(ValueError, match="made with the adaptive KL controller, this run has the fixed one"):
        fixed.load_state_dict(adaptive.state_dict())
    with pytest.raises(ValueError, match="made with the fixed KL controller, this run has the adaptive one"):
        adaptive.load_state_dict(fixed.state_dict())
    with pytest.raises(ValueError, match=r"fixed KL coefficient 0.3, this run has 0.2: set init_kl_coef to 0.3"):
        fixed.load_state_dict(FixedKLController(0.3).state_dict())
