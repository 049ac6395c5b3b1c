import pytest

from fedact.simulate import main
from tests.support.refusal import quiet_home, refused  # noqa: F401

NAMES = [
    (["--method", "hosdv"], "did you mean 'hosvd'"),
    (["--method", ""], "unknown method ''"),
    (["--method", "hosvd:varience=0.8"], "did you mean 'variance'"),
    (["--method", "vanilla:variance=0.8"], "no settings"),
    (["--model", "mobilnet_v2"], "did you mean 'mobilenet_v2'"),
    (["--dataset", "digit"], "did you mean 'digits'"),
    (["--partition", "dirichelt"], "did you mean 'dirichlet'"),
    (["--partition", "dirichlet:alhpa=1"], "did you mean 'alpha'"),
    (["--partition", "shards:per_clients=2"], "did you mean 'per_client'"),
    (["--scope", "save"], "saved"),
    (["--schedule", "cosin"], "cosine"),
    (["--task", "poetry"], "classification"),
    (["--runtime", "cloud"], "local"),
    (["--runtime", "flower"], "flwr run"),
    (["--ray-address", "127.0.0.1:6379"], "--runtime ray"),
    (["--device", "tpu"], "tpu"),
    (["--device", "cuda:99"], "cuda:99"),
    (["--strategy", "fedadm"], "did you mean 'fedadam'"),
    (["--strategy", ""], "unknown strategy ''"),
    (["--strategy", "fedadam:etta=0.1"], "did you mean 'eta'"),
    (["--strategy", "fedprox:mu=0.1"], "allowed are proximal_mu"),
    (["--strategy", "median:beta=0.1"], "no settings"),
    (["--privacy", "local_pd"], "did you mean 'local_dp'"),
    (["--privacy", "none:epsilon=1"], "no settings"),
    (["--privacy", "local_dp:epsilom=1"], "did you mean 'epsilon'"),
    (["--faults", "dorp=0.1"], "did you mean 'drop'"),
    (["--faults", "always"], "key=value"),
    (["--fault", "drop=0.1"], "did you mean '--faults'"),
    (["--dedline", "10"], "did you mean '--deadline'"),
]

SIZES = [
    (["--budget", "512XB"], "512XB"),
    (["--budget", "0KB"], "0KB"),
    (["--budget=-5KB"], "-5KB"),
    (["--budget", "-5KB"], "--budget"),
    (["--budget", ""], "budget is empty"),
    (["--budget", "  "], "budget is empty"),
    (["--budget", "0.5B"], "0.5B"),
    (["--budget", "nanKB"], "nanKB"),
    (["--budget", "9" * 400], "999"),
    (["--budget", "256KB:10,512KB"], "size:share"),
    (["--budget", "256KB:10,"], "size:share"),
    (["--budget", "256KB:-1"], "size:share"),
    (["--budget", "256KB:nan"], "size:share"),
    (["--budget", "256KB:inf"], "size:share"),
    (["--budget", "256KB:many"], "size:share"),
    (["--budget", ":10"], "not a size"),
    (["--budget", "1KB/2KB"], "lists 2 budgets for 20 clients"),
    (["--budget", "None:1,:2"], "not a size"),
]

NUMBERS = [
    (["--clients", "0"], "clients"),
    (["--clients", "-3"], "clients"),
    (["--clients", "few"], "few"),
    (["--clients", "2.5"], "2.5"),
    (["--clients", "100000"], "at most"),
    (["--clients", "100000000000000000000"], "at most"),
    (["--rounds", "-1"], "rounds"),
    (["--rounds", "ten"], "ten"),
    (["--threads", "0"], "threads"),
    (["--threads", "257"], "threads"),
    (["--lr", "nan"], "lr"),
    (["--lr", "inf"], "lr"),
    (["--lr", "0"], "lr"),
    (["--lr", "-0.1"], "lr"),
    (["--lr", "fast"], "fast"),
    (["--momentum", "1"], "momentum"),
    (["--warmup-rounds", "10"], "--warmup-rounds 10 must be fewer than the 10 rounds"),
    (["--warmup-rounds", "-1"], "warmup-rounds"),
    (["--pretrain-epochs", "0"], "pretrain-epochs"),
    (["--momentum", "nan"], "momentum"),
    (["--weight-decay", "nan"], "weight-decay"),
    (["--clip-norm", "nan"], "clip-norm"),
    (["--clip-norm", "inf"], "clip-norm"),
    (["--sample-fraction", "0"], "sample-fraction"),
    (["--sample-fraction", "1.5"], "sample-fraction"),
    (["--sample-fraction", "nan"], "sample-fraction"),
    (["--width", "nan"], "width"),
    (["--width", "0"], "width"),
    (["--batch-size", "0"], "batch-size"),
    (["--batch-size", "2147483648"], "batch-size 2147483648 is more than"),
    (["--dataset", "synthetic", "--max-examples", "1000000000000"], "at most"),
    (["--dataset", "synthetic", "--max-test-examples", "1000000000000"], "at most"),
    (["--device", "cuda:99999999999999999999"], "cuda:9999"),
    (["--local-epochs", "0"], "local-epochs"),
    (["--resolution", "7"], "resolution"),
    (["--resolution", "4096"], "resolution"),
    (["--seed", "-1"], "seed"),
    (["--seed", "4294967296"], "seed"),
    (["--seeds", "0"], "seeds"),
    (["--seed", "4294967295", "--seeds", "2"], "seed"),
    (["--calibration", "0"], "calibration"),
    *[(["--deadline", bad], "deadline") for bad in ("0", "-1", "nan", "inf", "soon")],
    (["--max-examples", "0"], "max-examples"),
    (["--max-examples", "50"], "at most"),
    (["--max-test-examples", "0"], "max-test-examples"),
    (["--layers", "-1"], "layers"),
    (["--layers", "some"], "layers"),
    (["--layers", "999"], "999"),
    (["--weights", "none", "--layers", "999"], "999"),
    (["--weights", "none", "--calibration", "100000"], "calibration"),
]

SETTINGS = [
    (["--method", "hosvd:variance=2"], "variance"),
    (["--method", "hosvd:variance=0"], "variance"),
    (["--method", "hosvd:variance=nan"], "variance"),
    (["--method", "hosvd:variance=inf"], "variance"),
    (["--method", "hosvd:variance=high"], "high"),
    (["--method", "hosvd:variance"], "key=value"),
    (["--method", "hosvd:variance="], "key=value"),
    (["--method", "hosvd:=0.8"], "key=value"),
    (["--method", "hosvd:variance=0.8,variance=0.9"], "twice"),
    (["--method", "hosvd:variance=0.8,ranks=1x1x1x1"], "not both"),
    (["--method", "hosvd:ranks=0x1x1x1"], "ranks"),
    (["--method", "hosvd:ranks=1xx1"], "ranks"),
    (["--method", "hosvd:ranks=1x2x3"], "ranks"),
    (["--method", "hosvd", "--method", "hosvd"], "once"),
    (["--method", "hosvd:variance=0.8", "--method", "hosvd:variance=0.80"], "once"),
    (["--method", "hosvd", "--method", "hosvd:"], "once"),
    (["--partition", "dirichlet:alpha=0"], "alpha"),
    (["--partition", "dirichlet:alpha=-1"], "alpha"),
    (["--partition", "dirichlet:alpha=nan"], "alpha"),
    (["--partition", "dirichlet:alpha=inf"], "alpha"),
    (["--partition", "dirichlet:alpha=low"], "low"),
    (["--partition", "shards:per_client=0"], "per_client"),
    (["--partition", "shards:per_client=1.5"], "1.5"),
    (["--partition", "iid:alpha=1"], "allowed are min_partition_size"),
    (["--partition", "pathalogical"], "did you mean 'pathological'"),
    (["--partition", "pathological:num_classes_per_partition=11"], "examples have 8 classes"),
    (["--partition", "pathological", "--clients", "3"], "hold at most 6 of 8 classes"),
    (["--partition", "pathological:class_assignment_mode=radnom"], "did you mean 'random'"),
    (["--partition", "iid:min_partition_size=2"], "at least 3"),
    (["--partition", "linear:min_partition_size=1000"], "at most 0 clients"),
    *[
        (["--strategy", f"fedadam:{name}={bad}"], name)
        for name in ("eta", "tau")
        for bad in ("0", "-1", "nan", "inf", "1e9")
    ],
    *[(["--strategy", f"fedyogi:{name}={bad}"], name) for name in ("beta_1", "beta_2") for bad in ("1", "-0.1", "nan")],
    *[(["--strategy", f"fedprox:proximal_mu={bad}"], "proximal_mu") for bad in ("-1", "nan", "inf", "much")],
    (["--strategy", "fedavgm:server_learning_rate=0"], "server_learning_rate"),
    (["--strategy", "fedavgm:server_momentum=1"], "server_momentum"),
    (["--strategy", "fedadagrad:eta=0"], "eta"),
    *[(["--strategy", f"trimmed_mean:beta={bad}"], "beta") for bad in ("0.5", "-0.1", "nan")],
    *[
        (["--privacy", f"local_dp:{name}={bad}"], name)
        for name in ("epsilon", "delta", "clipping_norm")
        for bad in ("0", "nan")
    ],
    (["--privacy", "local_dp:delta=1"], "delta"),
    (["--privacy", "local_dp:sensitivity=-1"], "sensitivity"),
    *[
        (["--faults", f"{name}={bad}"], name)
        for name in ("drop", "slow", "corrupt")
        for bad in ("-0.1", "1.1", "nan", "some")
    ],
    (["--faults", "drop=0.5,slow=0.4,corrupt=0.2"], "add up to 1"),
    (["--faults", "slow=0.1,lag=0"], "lag"),
    (["--faults", "drop=0.1,drop=0.2"], "twice"),
    (["--faults", "slow=0.1,deadline=5"], "--deadline SECONDS"),
    (["--faults", ""], "drop=0.1"),
]

FLAGS = [
    (["--client", "5"], "did you mean '--clients'"),
    (["--bugdet", "5KB"], "did you mean '--budget'"),
    (["--clients"], "--clients"),
    (["--method"], "--method"),
    (["--config"], "--config"),
    (["digits"], "digits"),
    (["--dry-run=yes"], "--dry-run"),
    (["--config", "missing.toml"], "missing.toml"),
    (["--config", "."], "--config"),
    (["--data-dir", "two\nlines", "--dataset", "npz"], "--data-dir"),
    (["--data-dir", "\udcff", "--dataset", "npz"], "--data-dir"),
    (["--weights", "two\nlines"], "--weights"),
]


def identify(value):
    return " ".join(value)[:60].replace("\n", " ") if isinstance(value, list) else ""


@pytest.mark.parametrize(("arguments", "said"), [*NAMES, *SIZES, *NUMBERS, *SETTINGS, *FLAGS], ids=identify)
def test_bad_input_is_one_line_and_code_2_and_nothing_written(arguments, said, capsys, tmp_path):
    # The flag under test comes last, so that one without its value has none.
    before = ["--out", str(tmp_path / "out")]
    code = main([*before, *arguments])
    errors = capsys.readouterr().err
    assert (code, errors.count("\n"), errors[:8]) == (2, 1, "fedact: "), errors
    assert said in errors
    assert not (tmp_path / "out").exists()


TOML = [
    ("clinets = 3", "did you mean 'clients'"),
    ("client = 3\nbudgit = '1KB'", "'budget'"),
    ("[model]\nname = 'x'", "model"),
    ("clients = ", "not TOML"),
    ("clients = 3\nclients = 4", "not TOML"),
    ("clients = [3]", "clients"),
    ("clients = true", "clients"),
    ("lr = true", "lr"),
    ("lr = nan", "lr"),
    ("budget = false", "budget"),
    ("budget = [512]", "budget"),
    ("budget = 0", "budget"),
    ("method = []", "method"),
    ("method = [1, 2]", "method"),
    ("method = {a = 1}", "method"),
    ("seed = 1979-05-27", "seed"),
    ("batch-size = 3\nbatch_size = 4", "batch"),
    ("config = 'x.toml'", "config"),
    ('"a\\nb" = 1', "a\\nb"),
    ("dataset = 'npz'\ndata-dir = \"a\\u0000b\"", "data-dir"),
]


@pytest.mark.parametrize(("text", "said"), TOML, ids=lambda value: value.split("\n")[0])
def test_bad_toml_is_one_line_and_code_2(text, said, capsys, tmp_path):
    (tmp_path / "bad.toml").write_text(text)
    assert said in refused(capsys, ["--config", str(tmp_path / "bad.toml")], tmp_path / "out")


def test_bytes_that_are_no_text_are_not_toml(capsys, tmp_path):
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    assert "not TOML" in refused(capsys, ["--config", str(tmp_path / "bad.toml")], tmp_path / "out")


def test_all_errors_are_named_at_once(capsys, tmp_path):
    (tmp_path / "bad.toml").write_text("clients = 0\nlr = nan\nroundz = 3\nbudget = '5XB'")
    line = refused(capsys, ["--config", str(tmp_path / "bad.toml"), "--seeds", "0"], tmp_path / "out")
    assert all(word in line for word in ("clients", "lr", "'rounds'", "5XB", "seeds"))
