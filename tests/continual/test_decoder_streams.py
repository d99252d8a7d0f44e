"""Decoders in the continual loop: every kind of prompt, the shipped model files, and prompts that leave for peft."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from codegen2_jax import convert
from codegen2_jax.interop.huggingface import load, save
from codegen2_jax.interop.names import PACKAGED
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.prompts.pool import PromptPool
from codegen2_jax.prompts.soft import SoftPrompts
from codegen2_jax.training.checkpoints import Checkpointer
from codegen2_jax.training.initialisation import weights_digest
from codegen2_jax.training.prompt_adapters import block_of

pytest.importorskip("seqio", reason="caching the tasks needs the extra 'seqio'")

SIZES = {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 4, "head_dim": 8, "rotary_dim": 4}
SMALLER = [f"--gin_bindings=codegen.CodeGenConfig.{name} = {value}" for name, value in SIZES.items()]
SMALLER.append("--gin_bindings=codegen.CodeGenConfig.max_positions = 256")
TASKS = ["tiny_copy", "tiny_reverse", "tiny_upper"]
FEW = ("--gin_file=streams/tiny_ci.gin", "--gin.TOP_K=2", "--gin.EVAL_EXAMPLES=2", "--gin.STEPS_PER_TASK=2")


@pytest.fixture(scope="module")
def with_its_vocabulary(environment, tmp_path_factory):
    """A cache of its own: records of another vocabulary would push out those that the other tests share."""
    return environment | {"CODEGEN2_JAX_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random CodeGen with nano-codegen2's vocabulary, as a directory."""
    directory = tmp_path_factory.mktemp("models") / "base"
    config = CodeGenConfig(vocab_size=4096, max_positions=256, **SIZES)
    params = jax.device_get(jax.jit(DecoderOnly(config).init_params)(jax.random.key(0)))
    save(directory, config, params, dtype="float32", vocabulary=PACKAGED["nano_codegen2"])
    return directory


def train(method, directory, environment, *more):
    """A finished run's scores.json."""
    words = [f"--gin_file={method}.gin", *FEW, f"--model_dir={directory}", *more]
    line = [sys.executable, "-m", "codegen2_jax.train", *words]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((directory / "scores.json").read_text())


def adapters(capsys, *words):
    code = convert.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def task_prompts(base, tmp_path_factory):
    """What a finished run with a block of prompts for each task leaves behind, without the training."""
    directory = tmp_path_factory.mktemp("runs") / "task_prompts"
    prompts = np.random.default_rng(0).normal(size=(3, 6, 32)).astype(np.float32)
    state = {"best": {"prompt": {"prompts": prompts}}, "step": np.asarray(2)}
    with Checkpointer(directory / "checkpoints") as checkpoints:
        checkpoints.save(9, state, {"stage": 3})
    record = {"complete": True, "stream": TASKS, "walk": "sequential", "method": "task_prompts", "mp_num": None}
    record |= {"init_from": str(base), "weights_digest": weights_digest(base)}
    record["prompt"] = dataclasses.asdict(SoftPrompts(num_tokens=6, per_task=True))
    (directory / "scores.json").write_text(json.dumps(record))
    return directory


def test_prompt_pooling_trains_a_decoder(tmp_path, with_its_vocabulary):
    """pp.gin on the shipped nano model, smaller by its own arguments: no task owns keys, all are found by the query."""
    record = train("pp", tmp_path, with_its_vocabulary, "--gin_file=models/codegen2_nano.gin", *SMALLER)
    assert record["complete"] and record["stream"] == TASKS and record["init_from"] == "random"
    assert len(record["splits"]["test"]["bleu"]) == 4
    assert all(None not in row and len(row) == 3 for row in record["splits"]["test"]["bleu"])
    assert record["cost"]["trainable_parameters"] == 100 * 32 + 100 * 5 * 32, "100 keys and their prompts, no more"
    assert record["cost"]["prompt_tokens"] == 10 and record["prompt"]["assignment"] == "learned"
    with Checkpointer(tmp_path / "checkpoints", read_only=True) as checkpoints:
        shapes = checkpoints.latest_shapes()
        wanted = {"best": {"prompt": {"keys": shapes["best/prompt/keys"]}}}
        _, state, meta = checkpoints.restore_latest(wanted, partial=True)
    moved_M = np.abs(np.linalg.norm(state["best"]["prompt"]["keys"], axis=1) - 1) > 1e-4
    assert 0 < moved_M.sum() < 100, "keys that were chosen move, and no others"
    assert meta["stage"] == 3


def test_a_pool_with_owners_trains_a_decoder_and_leaves_as_adapters(base, tmp_path, with_its_vocabulary, capsys):
    """What is exported for a task is what the pool itself prepends when it is told the task."""
    run = tmp_path / "run"
    words = ("--gin_file=models/codegen2_nano.gin", *SMALLER, f"--gin.INIT_FROM='{base}'")
    record = train("pp_tf", run, with_its_vocabulary, *words)
    assert record["complete"] and record["prompt"]["top_k"] == 2 and record["init_from"] == str(base)
    assert all(len(row) == 3 and None not in row for row in record["splits"]["test"]["bleu"])
    assert record["cost"]["trainable_parameters"] == 6 * (32 + 5 * 32) and record["diagnostics"]["retrieval_top1"][-1]
    code, out, err = adapters(capsys, "--from", run, "--to", tmp_path / "out", "--adapter")
    assert (code, err) == (0, "") and out.count("wrote") == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == TASKS
    with Checkpointer(run / "checkpoints", read_only=True) as checkpoints:
        shapes = checkpoints.latest_shapes()
        names = ("prompts", "keys")
        wanted = {"best": {"prompt": {name: shapes[f"best/prompt/{name}"] for name in names}}}
        wanted["prompt_state"] = {name: shapes[f"prompt_state/{name}"] for name in ("assignment", "ready", "seen")}
        _, state, _ = checkpoints.restore_latest(wanted, partial=True)
    pool, task_B = PromptPool(**record["prompt"]), np.arange(3)
    query_BD = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    prompt_BPD, _ = pool.prompt(state["best"]["prompt"], state["prompt_state"], task_B, query_BD, selection="oracle")
    arrays = {**state["best"]["prompt"], **state["prompt_state"]}
    for task, name in enumerate(TASKS):
        np.testing.assert_array_equal(block_of(record["prompt"], arrays, task, "run"), prompt_BPD[task])
        _check_file(tmp_path / "out" / name, prompt_BPD[task])


def _check_file(directory, prompt_PD):
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(directory / "adapter_model.safetensors")["prompt_embeddings"], prompt_PD)


def test_peft_answers_with_a_task_s_prompt_as_we_do(base, task_prompts, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="reading adapters needs torch (extra [test])")
    torch.set_num_threads(1)  # two spinning threads are slower than one wherever somebody else computes too
    transformers = pytest.importorskip("transformers", reason="reading adapters needs transformers (extra [test])")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft imports
        peft = pytest.importorskip("peft", reason="reading adapters needs peft (extra [peft])")
    out = tmp_path / "adapter"
    code, _, err = adapters(capsys, "--from", task_prompts, "--to", out, "--adapter", "--task", "tiny_reverse")
    assert (code, err) == (0, "")
    config, params = load(base)
    from safetensors.numpy import load_file

    prompt_PD = load_file(out / "adapter_model.safetensors")["prompt_embeddings"]
    np.testing.assert_array_equal(prompt_PD, np.random.default_rng(0).normal(size=(3, 6, 32)).astype(np.float32)[1])
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base.resolve())
    tokens_BT = np.random.default_rng(0).integers(0, 4096, (2, 10), dtype=np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        model = peft.PeftModel.from_pretrained(model, out).eval()
    with torch.no_grad():
        mask = torch.ones(tokens_BT.shape, dtype=torch.long)
        theirs = model(input_ids=torch.tensor(tokens_BT).long(), attention_mask=mask).logits.numpy()
    pairs = {"inputs_BS": tokens_BT[:, :4], "inputs_mask_BS": np.ones((2, 4), bool)}
    pairs["decoder_inputs_BT"] = tokens_BT[:, 4:]
    ours = jax.jit(DecoderOnly(config).logits)(params, pairs, np.broadcast_to(prompt_PD, (2, 6, 32)))
    np.testing.assert_allclose(ours, theirs[:, 10:], rtol=0, atol=1e-5)


def test_what_cannot_be_an_adapter_is_one_line(base, task_prompts, tmp_path, capsys):
    def refusal(*words, run=task_prompts):
        code, _, err = adapters(capsys, "--from", run, "--to", tmp_path / "out", "--adapter", *words)
        assert code == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()
        return err

    def changed(**record):
        """A run directory with another scores.json and the same checkpoints."""
        directory = tmp_path / "changed"
        directory.mkdir(exist_ok=True)
        if not (directory / "checkpoints").exists():
            os.symlink(task_prompts / "checkpoints", directory / "checkpoints")
        content = json.loads((task_prompts / "scores.json").read_text()) | record
        (directory / "scores.json").write_text(json.dumps(content))
        return directory

    assert "no task 'tiny_rev'; its tasks are tiny_copy, tiny_reverse, tiny_upper" in refusal("--task", "tiny_rev")
    assert "--mp_num is for a model's weights" in refusal("--mp_num", "4")
    assert "takes the directory of a continual run" in refusal(run=base)
    assert "is unfinished" in refusal(run=changed(complete=False))
    assert "no soft prompts: its method is 'finetune'" in refusal(run=changed(prompt=None, method="finetune"))
    assert "random weights" in refusal(run=changed(init_from="random"))
    assert "are not those that" in refusal(run=changed(weights_digest="0" * 64))
    assert "kept the prompts of its last task only; add --task tiny_upper" in refusal(run=changed(walk="individual"))
    assert "task 4 of 4" in refusal(run=changed(stream=[*TASKS, "tiny_more"]))
    assert convert.main(["--from", str(base), "--to", str(tmp_path / "out"), "--task", "tiny_copy"]) == 2
    assert "--task tiny_copy is for --adapter" in capsys.readouterr().err


def test_a_pool_that_chooses_by_the_input_has_no_one_block():
    arrays = {"prompts": np.zeros((6, 5, 4)), "assignment": np.ones((3, 6), bool)}
    with pytest.raises(ValueError, match="of 6 keys 2 are chosen for each input"):
        block_of({"top_k": 2, "prompt_order": "key_id"}, arrays, 0, "run")
    with pytest.raises(ValueError, match="in the order 'score'"):
        block_of({"top_k": 6, "prompt_order": "score"}, arrays, 0, "run")
