import torch
from digits_team import probe, team

from fedloom.align.checkup.dead import dead_units


def test_units_that_never_fire_are_counted():
    model = team("2nn", 1)[0]
    before = dead_units(model, probe())
    assert [(d.layer, d.units) for d in before] == [("dense", 200), ("dense_1", 200)]
    with torch.no_grad():
        model.module.by_path["dense"].bias[:7] = -100.0
    after = dead_units(model, probe())
    assert 7 <= after[0].dead <= before[0].dead + 7
    assert after[0].dead > before[0].dead


def test_units_without_weights_are_dead_though_their_bias_fires():
    model = team("mlp", 1)[0]
    assert [d.dead for d in dead_units(model, probe())] == [0, 0]
    with torch.no_grad():
        model.module.by_path["dense_1"].weight[:3] = 0.0
    assert [d.dead for d in dead_units(model, probe())] == [0, 3]


def test_channels_of_a_convolution_fire_if_they_do_anywhere():
    model = team("lenet", 1)[0]
    fired = dead_units(model, probe())
    with torch.no_grad():
        model.module.by_path["conv2d_1"].bias[4] = -100.0
    more = dead_units(model, probe())
    assert [d.units for d in more] == [6, 16, 120, 84]
    assert more[1].dead == fired[1].dead + 1
