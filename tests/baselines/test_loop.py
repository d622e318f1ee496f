from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from baselines import _loop, autoencoder, deep_svdd
from baselines._loop import LoopConfig, Player, in_processes, optimise
from maskbridge.approach import Context, PredictData, TrainData
from maskbridge.errors import MaskbridgeError, OptionError, RunError

POINTS = torch.linspace(-1, 1, 21)[:, None]
CONFIG = LoopConfig(epochs=6, batch_size=4, learning_rate=1e-2)


def fit_line(fabric, *, config: LoopConfig, context: Context) -> tuple[list[float], dict[str, torch.Tensor]]:
    """y = 2x + 1, with noise that the loop seeds."""
    torch.manual_seed(context.seed)
    network = torch.nn.Linear(1, 1)

    def losses(networks, rows):
        x = POINTS[rows]
        return (networks[0](x + 0.01 * torch.randn_like(x)) - (2 * x + 1)).square().mean(dim=1)

    [history] = optimise(fabric, [Player(network, losses)], len(POINTS), "line", config, context)
    return history, {key: value.clone() for key, value in network.state_dict().items()}


def quiet_line(fabric, *, config: LoopConfig, context: Context) -> dict[str, torch.Tensor]:
    torch.manual_seed(context.seed)
    network = torch.nn.Linear(1, 1)

    def losses(networks, rows):
        return (networks[0](POINTS[rows]) - (2 * POINTS[rows] + 1)).square().mean(dim=1)

    optimise(fabric, [Player(network, losses)], len(POINTS), "line", config, context)
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "work").mkdir()
    return Context(device="cpu", seed=5, work=tmp_path / "work")


def test_losses_fall_and_there_is_one_for_each_epoch(context: Context) -> None:
    history, _ = in_processes(fit_line, config=dataclasses.replace(CONFIG, epochs=30), context=context)
    assert len(history) == 30
    assert history[-1] < history[0] / 2


def test_a_training_that_goes_on_ends_at_the_same_bits(context: Context, monkeypatch, capsys) -> None:
    monkeypatch.setattr(_loop, "KEEP_SECONDS", 0.0)
    whole, weights = in_processes(fit_line, config=CONFIG, context=context)
    in_processes(fit_line, config=dataclasses.replace(CONFIG, epochs=2), context=context)
    capsys.readouterr()
    resumed, again = in_processes(fit_line, config=CONFIG, context=dataclasses.replace(context, resume=True))
    assert capsys.readouterr().err == "line: goes on after epoch 2 of 6\n"
    assert resumed == whole
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_without_resume_what_lies_there_is_not_used(context: Context) -> None:
    first = in_processes(fit_line, config=CONFIG, context=context)
    second = in_processes(fit_line, config=CONFIG, context=context)
    assert first[0] == second[0]


@pytest.mark.slow
def test_two_processes_learn_what_one_does_also_from_a_last_batch_of_one(context: Context) -> None:
    one = in_processes(quiet_line, config=CONFIG, context=context)
    two = in_processes(quiet_line, config=dataclasses.replace(CONFIG, devices=2), context=context)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-6)


def test_two_players_take_turns_and_see_each_other(context: Context) -> None:
    def work(fabric, *, config, context):
        one, two = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        players = [
            Player(one, lambda networks, rows: (networks[0](POINTS[rows]) - 3 * POINTS[rows]).square().mean(dim=1)),
            Player(
                two,
                lambda networks, rows: (
                    (networks[1](POINTS[rows]) - networks[0](POINTS[rows]).detach()).square().mean(dim=1)
                ),
            ),
        ]
        history = optimise(fabric, players, len(POINTS), "two", config, context)
        return history, one.weight.item(), two.weight.item()

    config = LoopConfig(epochs=100, batch_size=8, learning_rate=5e-2)
    history, one, two = in_processes(work, config=config, context=context)
    assert [len(each) for each in history] == [100, 100]
    assert (one, two) == (pytest.approx(3, abs=0.05), pytest.approx(3, abs=0.05))


def test_parameters_without_gradients_stay(context: Context) -> None:
    def work(fabric, *, config, context):
        network = torch.nn.Linear(1, 1)
        network.bias.requires_grad_(False)
        before = network.bias.item()
        player = Player(network, lambda networks, rows: (networks[0](POINTS[rows]) - 9).square().mean(dim=1))
        optimise(fabric, [player], len(POINTS), "frozen", config, context)
        return before, network.bias.item()

    before, after = in_processes(work, config=CONFIG, context=context)
    assert before == after


def test_divergence_names_the_epoch(context: Context) -> None:
    def work(fabric, *, config, context):
        network = torch.nn.Linear(1, 1)
        player = Player(network, lambda networks, rows: networks[0](POINTS[rows]).mean(dim=1) * float("nan"))
        optimise(fabric, [player], len(POINTS), "nan", config, context)

    with pytest.raises(MaskbridgeError, match=r"training diverged.*epoch 0"):
        in_processes(work, config=CONFIG, context=context)


@pytest.mark.parametrize("field", ["epochs", "batch_size", "learning_rate", "devices"])
def test_options_that_cannot_work_are_refused_by_name(field: str) -> None:
    for module in (deep_svdd, autoencoder):
        with pytest.raises(OptionError, match=f"--{field.replace('_', '-')} cannot be used"):
            module.Config(**{field: 0})


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "list", "other network", "no losses"])
def test_what_a_damaged_training_left_is_told_in_one_line(context: Context, damage: str) -> None:
    in_processes(fit_line, config=CONFIG, context=context)
    kept = context.work / "line.pt"
    whole = torch.load(kept, weights_only=True)
    if damage in ("empty", "text"):
        kept.write_bytes(b"" if damage == "empty" else b"hello")
    elif damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-200])
    else:
        changes = {"list": [1, 2], "other network": {**whole, "networks": [{}]}, "no losses": {**whole, "history": []}}
        torch.save(changes[damage], kept)
    with pytest.raises(RunError, match=r"line\.pt: what the interrupted training left cannot be read; found .*--over"):
        in_processes(fit_line, config=CONFIG, context=dataclasses.replace(context, resume=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "options"),
    [
        (deep_svdd, {"image_size": 32, "channels": 4, "anomalies": "cutpaste"}),
        (deep_svdd, {"backbone": "shufflenet_v2_x0_5", "backbone_weights": "none", "image_size": 64}),
        (autoencoder, {"image_size": 32, "channels": 4, "bottleneck": 4}),
        (autoencoder, {"backbone": "shufflenet_v2_x0_5", "backbone_weights": "none", "image_size": 64}),
    ],
)
def test_each_trains_in_two_processes(module, options, dataset, context: Context, tmp_path: Path) -> None:
    """Batch normalisation looks at each process's half on a CPU, so the numbers are near, not equal."""
    data = TrainData(dataset=dataset, train=dataset.split("official").train, val=(), fold="official")
    losses = []
    for devices in (1, 2):
        config = module.Config(**options, epochs=2, batch_size=8, devices=devices)
        trained = module.train(data, config, tmp_path / f"weights{devices}", context)
        losses.append(trained.facts["loss_by_epoch"][0])
        ids = dataset.split("official").test
        test = PredictData(dataset=dataset, image_ids=ids, fold="official", part="test")
        assert len(list(module.predict(test, config, tmp_path / f"weights{devices}", context))) == len(ids)
    assert losses[1] == pytest.approx(losses[0], rel=0.3)


def test_each_epoch_sees_every_row_once_in_an_order_of_its_own(context: Context) -> None:
    def work(fabric, *, config, context):
        network, seen = torch.nn.Linear(1, 1).eval(), []

        def losses(networks, rows):
            assert network.training
            seen.append(rows.tolist())
            return networks[0](POINTS[rows]).square().mean(dim=1)

        optimise(fabric, [Player(network, losses)], len(POINTS), "order", config, context)
        return seen

    def epochs(seed: int) -> list[list[int]]:
        batches = in_processes(work, config=CONFIG, context=dataclasses.replace(context, seed=seed))
        assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 1] * 6
        return [[row for batch in batches[start : start + 6] for row in batch] for start in range(0, 36, 6)]

    orders = epochs(5)
    assert all(sorted(order) == list(range(21)) for order in orders)
    assert len(set(map(tuple, [*orders, *epochs(6), list(range(21))]))) == 13
    assert epochs(5) == orders


def test_a_step_is_adams_with_the_players_own_numbers(context: Context) -> None:
    options = {"lr": 0.05, "betas": (0.5, 0.9), "weight_decay": 0.1}
    start = torch.tensor([[0.3]]), torch.tensor([-0.2])

    def loss(network, rows):
        return (network(POINTS[rows]) - 2 * POINTS[rows]).square().mean(dim=1)

    def new() -> torch.nn.Linear:
        network = torch.nn.Linear(1, 1)
        network.load_state_dict(dict(zip(("weight", "bias"), start, strict=True)))
        return network

    def work(fabric, *, config, context):
        network = new()
        player = Player(network, lambda networks, rows: loss(networks[0], rows), betas=options["betas"])
        optimise(fabric, [player], len(POINTS), "adam", config, context)
        return {key: value.clone() for key, value in network.state_dict().items()}

    config = LoopConfig(epochs=4, batch_size=21, learning_rate=options["lr"], weight_decay=options["weight_decay"])
    found = in_processes(work, config=config, context=context)
    expected = new()
    optimizer = torch.optim.Adam(expected.parameters(), **options)
    for _ in range(4):
        optimizer.zero_grad()
        loss(expected, torch.arange(21)).mean().backward()
        optimizer.step()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found[key], value)
