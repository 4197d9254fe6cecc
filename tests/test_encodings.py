import copy

import pytest
import torch
from test_criteria import MODELS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass as from_dense,
)
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_to_dense_cutlass as to_dense,
)
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from prunegpt_utils import encodings, masks
from prunegpt_utils.modeling import input_axes, prunable_weights


@pytest.fixture(params=MODELS)
def sparse(request):
    model = MODELS[request.param]()
    masks.prune(model, "magnitude", 0.9, "global")
    return model


@pytest.mark.parametrize("encoding", encodings.ENCODINGS)
def test_a_model_comes_back(sparse, encoding, tmp_path):
    encodings.save_encoded(sparse, tmp_path / "file", encoding)
    other = type(sparse)(sparse.config)
    encodings.load_encoded(tmp_path / "file", other)
    for name, tensor in sparse.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


@pytest.mark.parametrize("encoding", encodings.ENCODINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", ["none", "all", "some"])
def test_a_matrix_comes_back(encoding, dtype, kept):
    matrix = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrix *= {"none": 0, "all": 1, "some": matrix > 0.5}[kept]
    encode, decode = encodings.ENCODINGS[encoding]
    assert torch.equal(decode(encode(matrix), matrix.shape), matrix)


def test_entropy_bound_by_hand():
    matrix = torch.tensor([[1.0, 0, 0, 2.0]])  # two of four places: six masks
    wanted = 2 * 4 + torch.log2(torch.tensor(6.0)) / 8
    assert encodings.entropy_bound(matrix) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitmask_is_near_the_bound(dtype):
    matrix = torch.randn(512, 512).to(dtype)
    kept = masks.make_masks({"a": matrix.float().abs()}, 0.9)["a"]
    parts = encodings.bitmask(matrix * kept)
    size = sum(part.nbytes for part in parts.values())
    assert 1 < size / encodings.entropy_bound(matrix * kept) < 1.3


def test_sizes_of_a_checkpoint(sparse, tmp_path):
    found = encodings.encoded_sizes(sparse, tmp_path)
    assert found["entropy bound"] < found["bitmask"] < found["safetensors"]
    assert found["safetensors, zlib"] < found["safetensors"]


def test_sparse_layers_compute_the_same_and_generate(sparse, ids):
    fast = encodings.sparse_copy(sparse)
    kinds = {type(module).__name__ for module in fast.modules()}
    assert "SparseLinear" in kinds and "Conv1D" not in kinds
    with torch.no_grad():
        ours, theirs = fast(ids[None, :16]).logits, sparse(ids[None, :16]).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    said = [m.generate(ids[None, :4], **options).tolist() for m in (fast, sparse)]
    assert said[0] == said[1]


SIZES = {"vocab_size": 512, "max_position_embeddings": 64, "hidden_size": 128}
WIDE = {  # PyTorch packs rows by 32
    "Conv1D": GPT2Config(n_layer=2, n_head=2, **SIZES),
    "Linear": LlamaConfig(
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, **SIZES
    ),
}


@pytest.mark.parametrize("kind", WIDE)
def test_two_four_lies_where_the_hardware_wants_it(kind):
    """PyTorch packs every matrix and gets it back; the other way round it is not 2:4."""
    model = AutoModelForCausalLM.from_config(WIDE[kind])
    masks.prune(model, "magnitude", 0.5, "2:4")
    axes = input_axes(model)
    for name, weight in prunable_weights(model).items():
        matrix = weight.detach().movedim(axes[name], 1).half().contiguous()
        encodings.check_two_four(matrix)
        packed, places = from_dense(matrix)
        assert packed.numel() == matrix.numel() // 2
        assert torch.equal(to_dense(packed, places), matrix), name
        with pytest.raises(ValueError, match="is not 2:4"):
            encodings.check_two_four(matrix.T)


@pytest.mark.skipif(encodings.has_two_four(), reason="there is a GPU with 2:4")
def test_two_four_needs_a_gpu():
    with pytest.raises(ValueError, match="need an NVIDIA GPU of compute capability 8.0"):
        encodings.two_four_copy(MODELS["Conv1D"]())


@pytest.mark.skipif(not encodings.has_two_four(), reason="no GPU with 2:4")
@pytest.mark.parametrize("kind", WIDE)
def test_two_four_computes_the_same_on_a_gpu(kind):
    model = AutoModelForCausalLM.from_config(WIDE[kind]).eval()
    masks.prune(model, "magnitude", 0.5, "2:4")
    fast, plain = encodings.two_four_copy(model), copy.deepcopy(model).half().cuda()
    ids = torch.arange(32, device="cuda")[None]
    with torch.no_grad():
        torch.testing.assert_close(fast(ids).logits, plain(ids).logits, rtol=1e-2, atol=1e-2)
    assert fast.generate(ids[:, :4], max_new_tokens=4, pad_token_id=0).shape == (1, 8)
