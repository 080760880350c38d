"""The configuration: what is read comes back, and what is wrong is said, all of it."""

from __future__ import annotations

import pytest

from fedloom.config import Config
from fedloom.config.conflicts import check, conflicts
from fedloom.config.values import flags
from fedloom.errors import DataError, UsageError

FULL = """
[data]
source = "digits"
clients = 20
scheme = "dirichlet"
alpha = 0.3
holdout = 0.2

[algorithm]
name = "fedprox"
mu = 0.01

[training]
lr = 0.05

[sampling]
per_round = "10%"

[network]
profile = "mobile"
speed = "lognormal(median=2k, sigma=0.5)"
up = 1000000

[evaluation]
target = 0.9
stop_at_target = true

[run]
rounds = 7
"""


def write(folder, text):
    path = folder / "exp.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_toml_becomes_a_configuration_and_toml_again(tmp_path):
    config = Config.read(write(tmp_path, FULL))
    assert (config.data.clients, config.data.options, config.algorithm.options) == (20, {"alpha": 0.3}, {"mu": 0.01})
    assert (config.sampling.per_round, config.run.rounds) == (0.1, 7)
    assert (config.network.speed, config.network.up) == ("lognormal(median=2k, sigma=0.5)", "1000000")
    assert Config.read(write(tmp_path, config.to_toml())) == config


def test_texts_with_any_sign_survive(tmp_path):
    odd = 'a "quoted" \\ path\nwith é, \x7f and 数'
    config = Config.of(data=odd)
    assert Config.read(write(tmp_path, config.to_toml())).data.source == odd


def test_flags_come_before_the_file(tmp_path):
    config = Config.read(write(tmp_path, FULL)).override(rounds="9", lr=0.5, alpha="1", mu=None, options={"mu": 0.2})
    assert (config.run.rounds, config.training.lr, config.data.options["alpha"]) == (9, 0.5, 1)
    assert config.algorithm.options == {"mu": 0.2}


@pytest.mark.parametrize(("value", "found"), [(None, None), (7, 7), ("7", 7), (7.0, 7), (0, 0)])
def test_a_whole_number_may_be_left_out(tmp_path, value, found):
    config = Config.of(noise_seed=value)
    assert config.privacy.noise_seed == found
    assert type(config.privacy.noise_seed) is type(found)
    assert Config.read(write(tmp_path, config.to_toml())) == config
    assert ("noise_seed" in config.to_toml()) is (found is not None)


def test_another_algorithm_or_scheme_does_not_inherit_options(tmp_path):
    config = Config.read(write(tmp_path, FULL))
    assert config.override(algorithm="fedavg").algorithm.options == {}
    assert config.override(algorithm="fedprox:mu=0.5").algorithm.options == {"mu": 0.5}
    assert config.override(scheme="iid").data.options == {}
    assert config.override(scheme="dirichlet").data.options == {"alpha": 0.3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nepohcs = 3", "[training] unknown key 'epohcs': did you mean 'epochs'?"),
        ("[trainig]\nepochs = 3", "unknown key 'trainig': did you mean 'training'?"),
        ("epochs = 3", "unknown key 'epochs': it belongs under [training], as epochs"),
        ("[run]\nrounds = 2.5", "[run] rounds = 2.5; a whole number is expected"),
        ("[privacy]\nnoise_seed = 1.5", "[privacy] noise_seed = 1.5; a whole number is expected"),
        ("[privacy]\nnoise_seed = -1", "[privacy] noise_seed = -1; it must be 0 or more"),
        ("[privacy]\nmechanism = 'centrl'", "[privacy] mechanism = 'centrl'; choose from none, central, local"),
        ("[privacy]\nclip_quantile = 1", "[privacy] clip_quantile = 1; it must be between 0 and 1"),
        ("[privacy]\ndelta = 1", "[privacy] delta = 1; it must be between 0 and 1"),
        ("[privacy]\nsecure_bits = 63", "[privacy] secure_bits = 63; it must be from 8 to 62"),
        ("[run]\nrounds = true", "[run] rounds = True; a whole number is expected"),
        ("[training]\nlr = 'fast'", "[training] lr = 'fast'; a number is expected"),
        ("[training]\nlr = nan", "[training] lr = nan; it must be above 0"),
        ("[training]\noptimizer = 'sdg'", "[training] optimizer = 'sdg'; choose from sgd, adam, adamw"),
        ("[sampling]\nper_round = 1.5", "it must be a whole number from 1, or a share"),
        ("[attack]\nfraction = 1.2", "[attack] fraction = 1.2; it must be above 0 and at most 1"),
        ("[data]\nalpha = [1, 2]", "[data] alpha = [1, 2]; one value is expected"),
        ("[algorithm]\nname = 'fedprox:mu'", "'mu' is no option; write it as in fedprox:mu=0.1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, said):
    with pytest.raises(UsageError) as caught:
        Config.read(write(tmp_path, text))
    assert said in str(caught.value)
    assert "exp.toml" in str(caught.value)


def test_unknown_keywords_get_a_suggestion():
    with pytest.raises(UsageError, match="unknown key 'batchsize': did you mean 'batch_size'"):
        Config.of(batchsize=3)


def test_all_bad_values_stand_in_one_error(tmp_path):
    with pytest.raises(UsageError) as caught:
        Config.read(write(tmp_path, "[run]\nrounds = 0\nseeds = 1\n[training]\nlr = -1"))
    assert len(caught.value.context["conflicts"]) == 3


@pytest.mark.parametrize("text", ["[run\nrounds = 1", "\x00"])
def test_a_file_that_is_no_toml_is_named(tmp_path, text):
    with pytest.raises(DataError, match=r"exp\.toml: not a TOML file"):
        Config.read(write(tmp_path, text))
    with pytest.raises(DataError, match="no such file"):
        Config.read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clients": 5, "per_round": 6}, "per_round is 6, but there are only 5 clients"),
        ({"sampling": "poisson", "per_round": 10}, "give per_round as a share, such as 0.1"),
        ({"sampling": "poisson", "per_round": 0.1, "over_selection": 0.3}, "over_selection needs a number of clients"),
        ({"deadline": 3}, "a deadline needs a simulated network"),
        ({"availability": 0.5}, "no time passes"),
        ({"network": "mobil"}, "did you mean 'mobile'"),
        ({"speed": "gauss(1)"}, "network.speed"),
        ({"momentum": 0.9, "optimizer": "adam"}, "momentum belongs to sgd"),
        ({"algorithm": "fedavgg"}, "unknown algorithm 'fedavgg': did you mean 'fedavg'"),
        ({"algorithm": "fedprox:muu=1"}, "unknown option of fedprox 'muu': did you mean 'mu'"),
        ({"algorithm": "feddf"}, "set unlabelled"),
        ({"algorithm": "fedbuff", "network": "mobile", "deadline": 9}, "fedbuff never waits"),
        ({"algorithm": "fedbuff", "sampling": "fixed"}, "fedbuff asks clients one by one"),
        (
            {"algorithm": "fedbuff", "clients": 8, "per_round": 4},
            "fedbuff's buffer is 10, but there are only 8 clients",
        ),
        ({"algorithm": "fedbuff:buffer=101"}, "set buffer to 100 at most"),
        ({"algorithm": "local-only"}, "local-only has no global model"),
        ({"clients_every": 2}, "set holdout"),
        ({"samples_per_client": 9, "holdout": 0.1}, "both sides of holdout"),
        ({"samples_per_client": 9, "scheme": "shards"}, "which goes with iid and dirichlet"),
        ({"scheme": "dirichlt"}, "did you mean 'dirichlet'"),
        ({"scheme": "iid", "alpha": 0.1}, "has no options, found 'alpha'"),
        ({"data.clientes": 5}, "[data] unknown key 'clientes': did you mean 'clients'?"),
        ({"data.per_client": 5}, "has no options, found 'per_client'"),
        ({"attack": "signflip"}, "did you mean 'sign-flip'"),
        ({"attack": "label-flip", "attack_strength": 2}, "has no strength"),
        ({"stop_at_target": True}, "stop_at_target needs a target"),
        ({"workers": 2}, "workers belong to"),
        ({"address": "auto"}, "an address belongs to the engine ray"),
        ({"model": "2n"}, "unknown model '2n': did you mean '2nn'"),
        ({"engine": "workers", "device": "cuda"}, "trains on processors"),
        ({"plan": "lop"}, "did you mean 'loop'"),
        ({"algorithm": "krum:f=1", "per_round": 4}, "krum needs at least 5 models"),
        ({"algorithm": "bulyan:f=2", "per_round": "5%"}, "bulyan needs at least 11 models"),
        ({"algorithm": "central", "attack": "sign-flip"}, "nobody sends anything"),
    ],
)
def test_each_contradiction_is_found_alone(given, said):
    found = list(conflicts(Config.of(**given)))
    assert len(found) == 1
    assert said in found[0]


def test_all_contradictions_stand_in_one_error_a_line_each():
    config = Config.of(clients=5, deadline=3, workers=3, momentum=0.4, optimizer="adam", algorithm="fedprox:nu=1")
    with pytest.raises(UsageError) as caught:
        check(config)
    assert len(caught.value.context["conflicts"]) == 5
    assert str(caught.value).count("\n  - ") == 5


def test_the_defaults_agree_with_each_other():
    assert not list(conflicts(Config()))


def test_no_flag_stands_for_two_keys():
    names = [key.metadata["flag"] or name for name, (_, key) in flags().items()]
    assert len(names) == len(set(names)) == sum(len(Config().to_tables()[t]) for t in Config().to_tables())


def test_differences_name_both_values():
    mine, theirs = Config.of(lr=0.1, rounds=5), Config.of(lr=0.2, rounds=9)
    assert mine.differences(theirs, but=["run.rounds"]) == ["training.lr is 0.2 there and 0.1 now"]
    assert not mine.differences(mine)
