"""One model out of members that were trained apart, against the plain mean and against the members."""

from functools import lru_cache

import pytest
import torch
from digits_team import N, blank, digits, probe, team, trained, truth
from small_models import FLAT, NAMES, build, dense, inputs, model_of, outputs, permuted, torch_model, weights
from torch import nn

from fedloom.align.attempts import JUDGED, SYNTHETIC
from fedloom.align.candidates import Candidate, Fused, merit
from fedloom.align.fuse import EFFORTS, LEANINGS, fuse
from fedloom.errors import DataError, MergeError, ModelError, UsageError

KINDS = ["2nn", "cnn-small"]
QUICK = {"plain mean": "plain", "aligned mean": "merge", "REPAIR": "merge", "least squares": "merge"}


def rows(kind, n=N):
    return [member.vector() for member in team(kind, n)]


def unlabelled():
    return torch.from_numpy(digits().x[:1400])


def accuracy(kind, vector):
    return float((outputs(blank(kind), vector, probe()).argmax(1) == truth()).float().mean())


def fused(kind, data=False, effort="quick", n=N) -> Fused:
    return _fused(kind, data, effort, n)


@lru_cache
def _fused(kind, data, effort, n):
    return fuse(blank(kind), rows(kind, n), x=unlabelled() if data else None, effort=effort)


def named(found):
    return {candidate.name: candidate for candidate in found.candidates}


@pytest.mark.parametrize("data", [False, True], ids=["no data", "unlabelled"])
@pytest.mark.parametrize("kind", [*KINDS, "mlp"])
def test_the_merge_is_nearly_as_good_as_its_members_and_far_above_the_plain_mean(kind, data):
    found, members = fused(kind, data), [accuracy(kind, row) for row in rows(kind)]
    plain = accuracy(kind, torch.stack(rows(kind)).mean(0))
    merged = accuracy(kind, found.vector)
    assert min(members) > 0.8
    assert merged > plain + 0.2
    assert merged > sum(members) / N - 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_adds_to_the_one_before(kind):
    scores = {name: c.score for name, c in named(fused(kind, data=True)).items()}
    assert scores["plain mean"] + 0.1 < scores["aligned mean"] < scores["REPAIR"] < scores["least squares"]


def test_quick_tries_what_it_says():
    found = fused("2nn")
    (lean,) = LEANINGS["quick"]
    central = next(c.name for c in found.candidates if c.name.startswith("least squares, ")).split("% ")[1]
    members = {f"member {i + 1}": "member" for i in range(N)}
    assert {c.name: c.kind for c in found.candidates} == {
        **QUICK,
        f"least squares, {lean:.0%} {central}": "merge",
        "ensemble": "baseline",
        **members,
        f"{central}, new last layer": "baseline",
    }
    assert central in members
    assert named(found)[central].score == max(c.score for c in found.candidates if c.kind == "member")
    assert found.judge == "agreement with the ensemble on synthetic inputs"
    assert found.probe == f"{SYNTHETIC:,} synthetic inputs, no data"


def test_best_tries_more():
    found = fused("2nn", data=True, effort="best")
    kinds = {c.name: c.kind for c in found.candidates}
    assert QUICK.items() < kinds.items()
    for lean in LEANINGS["best"]:
        assert any(name.startswith(f"least squares, {lean:.0%} ") for name in kinds)
    assert kinds["RegMean"] == kinds["Fisher"] == "merge"
    (distilled,) = (name for name in kinds if name.endswith(", distillation"))
    assert kinds[distilled] == "merge"
    assert distilled.removesuffix(", distillation") in kinds
    soup = named(found)["greedy soup"]
    assert soup.kind == ("merge" if "," in soup.note else "baseline")
    assert soup.note.startswith("made of member ")
    assert found.objective >= fused("2nn", data=True).objective * (1 - 1e-6)
    without = fuse(blank("2nn"), rows("2nn", 2), effort="best")  # there is no data to distil on
    assert not any("distillation" in c.name for c in without.candidates)
    assert "RegMean" in named(without)


def test_the_best_merge_is_chosen_and_what_was_scored_is_what_is_given():
    for found in (fused("2nn"), fused("cnn-small", data=True)):
        merges = [c for c in found.candidates if c.kind == "merge"]
        best = found.best("merge")
        assert best.score == max(c.score for c in merges)
        assert best.distance == min(c.distance for c in merges if c.score == best.score)
        assert found.chosen == best.name
        assert torch.equal(found.vector, best.vector)
        assert found.best("nothing") is None
        assert named(found)["ensemble"].vector is None
        assert named(found)["ensemble"].score == 1.0
        assert [torch.equal(named(found)[f"member {i + 1}"].vector, r) for i, r in enumerate(team_of(found))] == [
            True
        ] * N
        assert all(0 <= c.score <= 1 and c.distance >= 0 and c.seconds >= 0 for c in found.candidates)


def test_the_score_counts_first_and_the_distance_settles_ties():
    def tried(score, distance):
        return Candidate("", "merge", score, distance, 0.0, None)

    best, middle, worst = tried(0.6, 0.3), tried(0.6, 0.9), tried(0.5, 0.1)
    assert sorted([best, worst, middle], key=merit) == [worst, middle, best]


def test_a_fit_that_leans_on_one_member_still_says_what_all_say():
    x, model = unlabelled(), blank("2nn")
    found = fused("2nn", data=True)
    (leaning,) = (c for c in found.candidates if c.name.startswith("least squares, "))
    central = named(found)[leaning.name.split("% ")[1]]
    everyone = torch.stack([outputs(model, row, x) for row in rows("2nn")]).mean(0)
    made = outputs(model, leaning.vector, x)
    assert (made - everyone).square().mean() < 0.5 * (made - outputs(model, central.vector, x)).square().mean()


def test_synthetic_inputs_do_not_choose_among_all_merges_where_there_is_batch_norm():
    free, own = fused("mlp"), fused("mlp", data=True)
    (leaning,) = (c.name for c in free.candidates if c.name.startswith("least squares, "))
    assert free.chosen == leaning != free.best("merge").name
    assert torch.equal(free.vector, named(free)[leaning].vector)
    assert own.chosen == own.best("merge").name


def team_of(found):
    return rows("2nn" if len(found.vector) == len(rows("2nn")[0]) else "cnn-small")


def test_aligned_members_are_the_members_in_another_order():
    found, model = fused("2nn"), blank("2nn")
    for before, after in zip(rows("2nn"), found.aligned, strict=True):
        assert torch.equal(before.sort().values, after.sort().values)
        torch.testing.assert_close(
            outputs(model, before, probe()), outputs(model, after, probe()), rtol=1e-3, atol=1e-3
        )
    assert any(not torch.equal(a, b) for a, b in zip(rows("2nn"), found.aligned, strict=True))
    heads = found.aligned[:, : model.layout.trainable]
    pairs = [float(heads[i] @ heads[j]) for i in range(N) for j in range(i)]
    assert found.objective == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)
    torch.testing.assert_close(named(found)["aligned mean"].vector, found.aligned.mean(0))


@pytest.mark.parametrize("data", [False, True])
def test_the_same_seed_gives_the_same_bits(data):
    x = unlabelled()[:300] if data else None
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (fuse(blank("2nn"), rows("2nn", 2), x=x, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(one.candidates, same.candidates, strict=True):
        assert (a.name, a.kind, a.score, a.distance) == (b.name, b.kind, b.score, b.distance)
        assert a.vector is b.vector is None or torch.equal(a.vector, b.vector)
    assert torch.equal(one.aligned, same.aligned)
    assert not torch.equal(one.vector, other.vector)
    assert named(one)["member 1"].distance != named(other)["member 1"].distance  # other inputs to judge by


def test_the_best_effort_gives_the_same_bits_twice():
    x = unlabelled()[:200]
    one, same = (fuse(blank("mlp"), rows("mlp", 2), x=x, effort="best") for _ in range(2))
    for a, b in zip(one.candidates, same.candidates, strict=True):
        assert a.vector is b.vector is None or torch.equal(a.vector, b.vector)


def test_labels_judge():
    x, y, few = unlabelled(), torch.from_numpy(digits().y[:1400]), rows("2nn", 2)
    found = fuse(blank("2nn"), few, x=x, labels=y)
    assert found.judge == f"accuracy on {1400 // 5:,} inputs that were kept apart"
    assert found.probe == "1,400 labelled inputs"
    assert 0.85 < named(found)["ensemble"].score < 1.0
    wrong = fuse(blank("2nn"), few, x=x, labels=(y + 1) % 10)
    assert max(c.score for c in wrong.candidates if c.kind in ("member", "merge")) < 0.15
    assert torch.equal(named(wrong)["least squares"].vector, named(found)["least squares"].vector)  # labels fit nothing


def test_inputs_that_are_judged_by_are_kept_apart():
    found = fused("2nn", data=True)
    assert found.judge == f"agreement with the ensemble on {min(JUDGED, 1400 // 5):,} inputs that were kept apart"
    assert found.probe == "1,400 unlabelled inputs"


def test_a_member_and_its_copy_give_the_member():
    member = rows("2nn")[0]
    found = fuse(blank("2nn"), [member, member.clone()])
    expected = outputs(blank("2nn"), member, probe())
    for c in found.candidates:
        if c.kind in ("plain", "merge"):
            assert c.score == 1.0
            torch.testing.assert_close(outputs(blank("2nn"), c.vector, probe()), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_copies_whose_units_were_shuffled_are_fused_into_the_member(name):
    model = model_of(name)
    _, copies = permuted(model, 3)
    found = fuse(model, copies, x=inputs(model))
    assert not torch.equal(copies[0], copies[1])
    assert all(torch.equal(row, found.aligned[0]) for row in found.aligned)
    member = named(found)["member 1"].distance
    assert named(found)["plain mean"].distance != pytest.approx(member, abs=3e-3)
    for c in found.candidates:
        if c.kind == "merge":
            assert c.score == 1.0
            assert c.distance == pytest.approx(member, abs=1e-3)


def test_a_team_with_one_member_twice_and_a_stranger():
    first, second = rows("2nn", 2)
    found = fuse(blank("2nn"), [first, first, second], names=["ana", "ana's copy", "luis"])
    assert torch.equal(found.aligned[0], found.aligned[1])
    assert {"ana", "ana's copy", "luis"} <= named(found).keys()
    assert accuracy("2nn", found.vector) > 0.8


@pytest.mark.parametrize("data", [False, True])
def test_two_members_are_enough(data):
    found = fused("2nn", data, n=2)
    assert len(found.aligned) == 2
    assert accuracy("2nn", found.vector) > accuracy("2nn", torch.stack(rows("2nn", 2)).mean(0)) + 0.02
    assert accuracy("2nn", found.vector) > 0.8


def test_the_rule_says_how_aligned_members_become_one():
    found = fuse(blank("2nn"), rows("2nn", 3), rule=lambda aligned: aligned.median(0).values)
    torch.testing.assert_close(named(found)["aligned mean"].vector, found.aligned.median(0).values)
    torch.testing.assert_close(named(found)["plain mean"].vector, torch.stack(rows("2nn", 3)).median(0).values)


@pytest.mark.parametrize("given", [0, 1])
def test_fewer_than_two_members_are_refused(given):
    with pytest.raises(MergeError, match=f"alignment needs at least two models, {given} is given"):
        fuse(blank("2nn"), rows("2nn", given))


def test_one_input_is_refused_and_two_are_enough():
    with pytest.raises(DataError, match="alignment needs at least two inputs to fit and to judge by, 1 is given"):
        fuse(blank("2nn"), rows("2nn", 2), x=unlabelled()[:1])
    assert fuse(blank("2nn"), rows("2nn", 2), x=unlabelled()[:2]).vector.isfinite().all()


def test_an_unknown_effort_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match="unknown effort 'bets': did you mean 'best'"):
        fuse(blank("2nn"), rows("2nn", 2), effort="bets")
    assert EFFORTS == ("quick", "best")


def test_a_model_that_cannot_be_looked_into_is_refused_by_its_layer():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 10))
    model = torch_model(net, (1, 8, 8))
    with pytest.raises(ModelError, match=r"layer '1' \(GroupNorm\)"):
        fuse(model, [model.vector()] * 2)


def test_the_callers_rows_stay_and_the_module_is_left_in_inference_mode():
    for effort in EFFORTS:
        model, given = blank("mlp"), rows("mlp", 2)
        model.module.train()
        kept, x = [row.clone() for row in given], unlabelled()[:150]
        fuse(model, given, x=x, effort=effort)
        assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
        assert torch.equal(x, unlabelled()[:150])
        assert not any(part.training for part in model.module.modules())
        assert all(p.requires_grad for p in model.module.parameters())


def test_every_stage_is_announced():
    said = []
    found = fuse(blank("2nn"), rows("2nn", 2), x=unlabelled()[:100], on_stage=said.append)
    tried = [c.name for c in found.candidates if c.kind in ("plain", "merge")]
    assert said[:2] == ["probe", "matching"]
    assert said[2 : 2 + len(tried)] == tried
    assert said[2 + len(tried)] == "baselines"


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_model_can_be_fused(name, effort):
    model = model_of(name)
    members = [weights(model, seed) for seed in (1, 2, 3)]
    found = fuse(model, members, x=inputs(model, 60), effort=effort)
    assert all(c.vector.isfinite().all() for c in found.candidates if c.vector is not None)
    assert found.chosen == found.best("merge").name


@pytest.mark.parametrize("name", ["norm", "torch residual", "separable"])
def test_members_with_norms_are_fused_without_data(name):
    model = model_of(name)
    found = fuse(model, [weights(model, seed) for seed in (1, 2)])
    assert found.vector.isfinite().all()


def test_a_model_with_nothing_hidden_is_averaged():
    model = build(FLAT)
    members = [weights(model, seed) for seed in (1, 2, 3)]
    found = fuse(model, members, x=inputs(model), effort="best")
    torch.testing.assert_close(named(found)["aligned mean"].vector, torch.stack(members).mean(0))
    assert torch.equal(found.aligned, torch.stack(members))


def test_one_output_has_two_classes():
    model = build(FLAT, dense(8), classes=1)
    found = fuse(model, [weights(model, seed) for seed in (1, 2)], x=inputs(model), effort="best")
    assert found.vector.isfinite().all()
    assert any(c.name.endswith("new last layer") for c in found.candidates)


def test_units_that_no_layer_with_weights_makes_are_matched_by_their_weights():
    embedded = [("Embedding", {"input_dim": 17, "output_dim": 6}), dense(5), ("GlobalAveragePooling1D", {})]
    model = build(*embedded, shape=(64,))
    start, x = weights(model, 0), (inputs(build(FLAT)) * 16).reshape(300, 64)
    symmetry = fuse(model, [start] * 2, x=x).symmetry
    assert [group.size for group in symmetry.groups] == [6, 5]
    copies = [symmetry.apply(start, symmetry.random(torch.Generator().manual_seed(seed))) for seed in (1, 2)]
    found = fuse(model, copies, x=x)
    assert torch.equal(found.aligned[0], found.aligned[1])


def test_members_that_share_a_start_are_in_order_already():
    shared = [trained("2nn", 0, part) for part in range(2)]
    found = fuse(blank("2nn"), shared, x=unlabelled()[:500])
    assert torch.equal(found.aligned, torch.stack(shared))
