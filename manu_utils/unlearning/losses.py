"""What training baselines minimise: pure functions of logits, likelihoods and hidden states.

Each loss is the one that its paper states, on the answer tokens. The first four are derived in
notebook 06.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gradient_ascent(forget_logits: Tensor, forget_targets: Tensor) -> Tensor:
    """GA: −L(D_f), L the mean cross-entropy of the answer tokens (Thudi et al., arXiv 2109.13398).

    It has no lower bound.

    Args:
        forget_logits: [m, vocabulary], the predictions of m answer tokens.
        forget_targets: int64 [m], these tokens.
    """
    return -F.cross_entropy(forget_logits.float(), forget_targets)


def gradient_difference(
    forget_logits: Tensor, forget_targets: Tensor, retain_logits: Tensor, retain_targets: Tensor
) -> Tensor:
    """GD: −L(D_f) + L(D_r) (Liu et al., arXiv 2203.12817).

    Args:
        forget_logits, forget_targets: as in :func:`gradient_ascent`.
        retain_logits, retain_targets: the same of k answer tokens of the retain set,
            [k, vocabulary] and [k].
    """
    retain = F.cross_entropy(retain_logits.float(), retain_targets)
    return gradient_ascent(forget_logits, forget_targets) + retain


def kl_divergence(retain_logits: Tensor, vanilla_logits: Tensor) -> Tensor:
    """KL(vanilla ‖ current), mean over k answer tokens of the retain set.

    The released codes of TOFU and MLLMU-Bench take the same divergence over all positions of a row,
    prompt and padding included.

    Args:
        retain_logits, vanilla_logits: [k, vocabulary], what the current and the vanilla model
            predict.
    """
    current, vanilla = (x.float().log_softmax(-1) for x in (retain_logits, vanilla_logits))
    return (vanilla.exp() * (vanilla - current)).sum(-1).mean()


def kl_minimisation(
    forget_logits: Tensor, forget_targets: Tensor, retain_logits: Tensor, vanilla_logits: Tensor
) -> Tensor:
    """KL: −L(D_f) + KL(vanilla ‖ current) on D_r (MLLMU-Bench, arXiv 2410.22108).

    Args:
        forget_logits, forget_targets: as in :func:`gradient_ascent`.
        retain_logits, vanilla_logits: as in :func:`kl_divergence`.
    """
    divergence = kl_divergence(retain_logits, vanilla_logits)
    return gradient_ascent(forget_logits, forget_targets) + divergence


def negative_preference(
    log_likelihood: Tensor, reference_log_likelihood: Tensor, beta: float
) -> Tensor:
    """NPO: −(2/β) E log σ(−β log(π_θ/π_ref)) (Zhang et al., arXiv 2404.05868).

    Its gradient is that of the mean log-likelihood, weighted by 2 π_θ^β / (π_θ^β + π_ref^β):
    gradient ascent for β → 0, and standing still where an answer has become unlikely. This is the
    paper's loss alone; the NPO of open-unlearning adds a term on the retain set by default (NPO-RT
    in the paper).

    Args:
        log_likelihood, reference_log_likelihood: [b], log π of b answers, summed over their tokens
            (:func:`log_likelihoods`).
    """
    ratio = log_likelihood - reference_log_likelihood
    return 2 / beta * F.softplus(beta * ratio).mean()  # −log σ(−x) = softplus(x)


def simple_negative_preference(
    log_likelihood: Tensor, lengths: Tensor, beta: float, gamma: float
) -> Tensor:
    """SimNPO: −(2/β) E log σ(−(β/|y|) log π_θ(y) − γ') (Fan et al., arXiv 2410.07163).

    NPO without a reference: what counts is the mean log-likelihood of a token. Here γ' = β·γ, as in
    the code of the authors and in open-unlearning (its ``delta``); γ = 0 is their setting for TOFU.

    Args:
        log_likelihood: [b], log π of b answers, summed over their tokens.
        lengths: [b], the numbers of their tokens.
    """
    return 2 / beta * F.softplus(beta * (log_likelihood / lengths + gamma)).mean()


def direct_preference(ratio_of_winner: Tensor, ratio_of_loser: Tensor, beta: float) -> Tensor:
    """DPO: −(2/β) E log σ(β (winner − loser)) (Rafailov et al., arXiv 2305.18290).

    For unlearning the winner is a refusal ("I don't know.") and the loser the true answer (TOFU,
    arXiv 2401.06121). The factor 2/β is that of NPO, which is this loss without a winner, and of
    open-unlearning; the paper of DPO has 1.

    Args:
        ratio_of_winner, ratio_of_loser: [b], log(π_θ/π_ref) of the two answers to b questions.
    """
    return 2 / beta * F.softplus(-beta * (ratio_of_winner - ratio_of_loser)).mean()


def self_distillation(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, beta: float
) -> Tensor:
    """UNDIAL: cross-entropy to softmax(teacher − β · one-hot) (Dong et al., arXiv 2402.10052).

    One-hot is the true token; mean over the answer tokens. The common implementation
    (open-unlearning) averages over all tokens, prompt and padding included, and where none is to be
    forgotten (label −100) it takes β from the hundredth token from the end of the vocabulary.

    Args:
        logits, teacher_logits: [m, vocabulary], what the current and the vanilla model predict for
            m answer tokens.
        targets: int64 [m], these tokens.
    """
    true = F.one_hot(targets, logits.shape[-1])
    target = (teacher_logits.float() - beta * true).softmax(-1)
    return F.cross_entropy(logits.float(), target)


def misdirection(states: Tensor, aim: Tensor) -> Tensor:
    """RMU: the mean square of states − aim, over tokens and channels (Li et al., arXiv 2403.03218).

    On the forget set the aim is one vector for all tokens (:func:`control_vector`), on the retain
    set the states of the frozen model. The paper prints the squared norm, the sum over channels;
    its code takes the mean, which only scales both terms.

    Args:
        states: [m, hidden], what a layer of the current model writes at m positions.
        aim: [hidden] or [m, hidden].
    """
    return F.mse_loss(states.float(), aim.float().expand_as(states))


def control_vector(hidden: int, steering: float, seed: int) -> Tensor:
    """RMU's random direction of length ``steering``, float32 [hidden], on the CPU.

    As in the paper its entries are uniform in [0, 1) before they are scaled, so all are positive:
    any two such vectors have a cosine of about 3/4, and "random" means near the diagonal. Code that
    uses it (the authors', open-unlearning) does the same.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.rand(hidden, generator=generator, dtype=torch.float32)
    return steering * vector / vector.norm()


def log_likelihoods(logits: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """log π of each answer: the sum over its tokens, [number of rows].

    Args:
        logits, targets, rows: what :func:`answer_logits` returns.
    """
    of_token = -F.cross_entropy(logits.float(), targets, reduction="none")
    zeros = torch.zeros(int(rows.max()) + 1, device=logits.device)
    return zeros.index_add(0, rows, of_token)
