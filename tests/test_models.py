"""Models: their sizes, their shapes, and advice for a misspelt name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from raybench.models import avoid_slow_bf16, build
from raybench.models.resnet_cifar import PadShortcut, ResNetCifar
from raybench.techniques.layers.quantized_layers import QuantizedConv2d, quantizable
from raybench.techniques.layers.rounded_weights import rounded_weights
from raybench.training.measure import count_parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet20", 269_722), ("resnet20_b", 272_474), ("resnet44", 658_586)],
)
def test_parameters_are_those_of_the_paper(name, parameters):
    assert count_parameters(build(name, classes=10, image_size=32)) == parameters


@pytest.mark.parametrize("name", ["resnet20x2", "resnet20x2_b", "resnet32x3"])
def test_a_wider_resnet_has_its_channels_everywhere(name):
    plain, width = name.replace("x2", "").replace("x3", ""), int(name.partition("x")[2][0])
    with torch.device("meta"):
        wide, narrow = (build(n, classes=10, image_size=32) for n in (name, plain))
        assert wide(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    for (where, one), other in zip(wide.named_modules(), narrow.modules(), strict=True):
        if isinstance(one, torch.nn.Conv2d):
            assert one.out_channels == width * other.out_channels, where
            assert one.in_channels == (3 if where == "conv1" else width * other.in_channels), where
    assert wide.fc.in_features == 64 * width


@pytest.mark.parametrize("name", ["resnet20x0", "resnet20x", "resnet20_bx2", "resnet20x02"])
def test_a_width_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match=f"no model '{name}'"):
        build(name, classes=10, image_size=32)


@pytest.mark.parametrize("name", ["resnet20", "resnet20_b", "vit300x2"])
def test_own_models_map_images_to_logits(name):
    model = build(name, classes=7, image_size=32).eval()
    x = torch.randn(3, 3, 32, 32)
    logits = model(x)
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()
    assert torch.allclose(model(x[:1]), logits[:1], atol=1e-4)  # no image sees another
    assert not torch.equal(logits[0], logits[1])


def test_a_stage_halves_the_resolution_and_doubles_the_channels():
    model = build("resnet20", classes=10, image_size=32).eval()
    x = torch.relu(model.bn1(model.conv1(torch.randn(1, 3, 32, 32))))
    shapes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_shortcut_a_takes_every_second_pixel_and_pads_both_ends():
    x = torch.arange(1.0, 33.0).view(1, 2, 4, 4)
    out = PadShortcut(2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert not out[0, [0, 3]].any()
    assert out[0, 1].tolist() == [[1.0, 3.0], [9.0, 11.0]]
    assert torch.equal(out[0, 2], out[0, 1] + 16)


def test_the_same_seed_gives_the_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return build("resnet20", classes=10, image_size=32).conv1.weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_layers_are_six_n_plus_two():
    with pytest.raises(ValueError, match="layers is 21"):
        ResNetCifar(21, 10)


class TestVit:
    def test_the_default_has_the_size_of_the_reference(self):
        with torch.device("meta"):
            model = build("vit300", classes=10, image_size=32)
        assert count_parameters(model) == 12_814_126
        assert len(model.blocks) == 12
        assert {block.attn.num_heads for block in model.blocks} == {5}

    @pytest.mark.parametrize(
        ("width", "heads"), [(8, 1), (59, 1), (60, 1), (192, 3), (300, 5), (384, 6), (768, 12)]
    )
    def test_a_head_has_at_least_sixty_dimensions(self, width, heads):
        with torch.device("meta"):
            model = build(f"vit{width}x4", classes=10, image_size=32)
        assert len(model.blocks) == 4
        for block in model.blocks:
            assert block.attn.num_heads == heads
            assert block.mlp.fc1.in_features == width
            assert block.mlp.fc1.out_features % 16 == 0

    @pytest.mark.parametrize(("image_size", "patches"), [(8, 4), (32, 64), (64, 256), (96, 36)])
    def test_patches_are_small_on_small_images(self, image_size, patches):
        with torch.device("meta"):
            model = build("vit60x1", classes=7, image_size=image_size)
            assert model(torch.empty(2, 3, image_size, image_size)).shape == (2, 7)
        assert model.patch_embed.num_patches == patches

    @pytest.mark.parametrize("name", ["vit0", "vit300x0", "vit300x", "vit-300", "vit", "vit0300"])
    def test_sizes_that_are_none_are_refused(self, name):
        with pytest.raises(ValueError, match=f"no model '{name}'"):
            build(name, classes=10, image_size=32)


def test_library_models_take_small_images_and_a_wrong_name_gets_advice():
    """Shapes alone, on the meta device: no weight is drawn and nothing is multiplied."""
    finest = {  # side of the first feature map, or the number of patches, of a 32x32 image
        "resnet18": ("conv1", (64, 32, 32)),
        "vgg11": ("features.0", (64, 32, 32)),
        "mobilenet_v2": ("features.0", (32, 32, 32)),
        "vit_tiny_patch16_224": ("patch_embed", (64, 192)),
    }
    for name, (part, shape) in finest.items():
        seen = {}
        with torch.device("meta"):
            model = build(name, classes=7, image_size=32)
            model.get_submodule(part).register_forward_hook(
                lambda module, inputs, output, seen=seen: seen.update(shape=output.shape)
            )
            assert model(torch.empty(2, 3, 32, 32)).shape == (2, 7), name
        assert tuple(seen["shape"][1:]) == shape, name

    for wrong, right in (
        ("resnet_44", "resnet44"),
        ("resnt18", "resnet18"),
        ("vgg_11", "vgg11"),
        ("mobilenetv2", "mobilenet_v2"),
    ):
        with pytest.raises(ValueError, match=f"no model '{wrong}'; did you mean '{right}'"):
            build(wrong, classes=10, image_size=32)
    with pytest.raises(ValueError, match=r"there are .* such as resnet20, resnet44") as error:
        build("qqqq", classes=10, image_size=32)
    assert len(str(error.value)) < 200


class TestAvoidSlowBf16:
    """Strided depthwise convolutions compute in fp32 under autocast; quantized ones too."""

    @pytest.mark.parametrize("bits", [0, 4])
    def test_a_strided_depthwise_convolution_is_computed_in_fp32(self, bits):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, groups=4))
        if bits:
            quantizable(plain, bits=bits, activation_bits=8)
            rounded_weights(plain)["0.weight"].quantize(bits)
        changed = copy.deepcopy(plain)
        avoid_slow_bf16(changed)
        avoid_slow_bf16(changed)  # a second time changes nothing
        assert isinstance(changed[0], QuantizedConv2d) == bool(bits)
        assert changed.state_dict().keys() == plain.state_dict().keys()
        x = torch.randn(2, 4, 9, 9).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            y = copy.deepcopy(changed)(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, plain(x.float()).bfloat16())
        y.float().square().sum().backward()

    def test_all_other_convolutions_stay(self):
        model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, stride=2))
        avoid_slow_bf16(model)
        assert [type(module) for module in model] == [nn.Conv2d] * 2
