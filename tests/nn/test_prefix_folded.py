"""The fast copy of the frozen prefix: the same outputs to rounding, for the weights as they are, or no copy at all."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import densenet121, mobilenet_v2, resnet18

import fedact
from fedact.nn.prefix.folded import folded_prefix
from fedact.nn.prefix.split import split
from tests.support.laws import relative_error

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    """Convolutions that are called twice, that two layers read, whose bias the code reads, and that have no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.shared, self.tied = (nn.Conv2d(3 if k == 0 else 6, 6, 3, padding=1) for k in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6, affine=k != 1) for k in range(5))
        self.last, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.stem(x)).relu_()
        x = self.norms[1](self.twice(x)) + self.norms[2](self.twice(x.flip(1)))
        y = self.shared(x)
        x = self.norms[3](y) + y
        x = self.norms[4](self.tied(x)) * self.tied.bias.view(-1, 1, 1)
        return self.head(self.last(x).mean((2, 3)))


def trained(build, layers: int) -> nn.Module:
    torch.manual_seed(0)
    model = (build() if build is Tied else build(num_classes=4)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 2)
                module.bias.data.normal_()
    return fedact.compress(model, "exact", layers=layers)


def errors(model: nn.Module, folded) -> list[float]:
    return [relative_error(a, b) for a, b in zip(folded(X), split(model).prefix(X), strict=True)]


@pytest.mark.parametrize(("build", "layers", "folds"), [(mobilenet_v2, 4, 48), (resnet18, 3, 17), (Tied, 1, 1)])
def test_outputs_are_the_prefixs_and_follow_its_weights(build, layers, folds):
    model = trained(build, layers)
    names = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    folded = folded_prefix(split(model), X)
    assert len(folded.folds) == folds
    assert max(errors(model, folded)) < 1e-5
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.1)
    assert max(errors(model, folded)) > 1e-3
    folded.refresh()
    assert max(errors(model, folded)) < 1e-5
    assert names == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


class Sums(nn.Module):
    """Sums that may be fused with a convolution, and those that may not: of what changes between, and into what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c, self.d = (nn.Conv2d(3 if k == 0 else 6, 6, 3, padding=1) for k in range(5))
        self.relu, self.capped, self.identity = nn.ReLU(), nn.ReLU6(), nn.Identity()
        self.last, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.identity(self.a(x)))
        x = self.capped(torch.add(self.b(x), x))
        y = self.c(x)
        x = y + x.mul_(2)
        z = x * 1
        z += self.d(x)
        return self.head(self.last(self.capped(z - x)).mean((2, 3)))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize(
    ("build", "layers", "kernels"), [(mobilenet_v2, 4, 48), (resnet18, 3, 17), (Tied, 1, 5), (Sums, 1, 5)]
)
def test_packed_kernels_are_the_prefix_too_and_packed_again_only_for_new_weights(build, layers, kernels):
    torch.manual_seed(0)
    model = trained(build, layers) if build is not Sums else fedact.compress(Sums().eval(), "exact", layers=1)
    folded = folded_prefix(split(model), X, group=8)
    assert len(folded.packed.convolutions) == kernels
    assert max(errors(model, folded)) < 1e-5
    weights = [getattr(folded.model, name) for name in folded.packed.convolutions]
    folded.refresh()
    assert all(
        getattr(folded.model, name) is weight for name, weight in zip(folded.packed.convolutions, weights, strict=True)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert max(errors(model, folded)) > 1e-3
    folded.refresh()
    assert max(errors(model, folded)) < 1e-5


def test_there_is_none_where_a_hook_would_not_run_or_the_code_needs_other_strides():
    model = trained(densenet121, 2)
    handle = model.features.denseblock1.register_forward_hook(lambda *_: None)
    assert folded_prefix(split(model), X) is None
    handle.remove()
    assert folded_prefix(split(model), X) is not None

    class Strided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), -1).view(x.shape)

    strided = fedact.compress(nn.Sequential(nn.Conv2d(3, 4, 3), Strided(), nn.Conv2d(4, 4, 3)).eval(), "exact", layers=1)
    assert split(strided).prefix(X)
    assert folded_prefix(split(strided), X) is None
