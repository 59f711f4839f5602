"""Which classes a config may name, and what their constructors are given."""

import pytest
import torch
from closed_forms import GaussianData
from methods import SD

from scm.config import methods, parts
from scm.config.allow import construct
from scm.config.read import read
from scm.core.errors import UserError
from scm.method.velocity import Teacher


@pytest.mark.parametrize(
    "target", ["os.system", "scm.data.dataset.torch.load", "scm.core.files.found", "closed_forms.x"]
)
def test_a_target_outside_the_allow_list_is_refused(target):
    optimizer = parts.Part(_target_=target)
    with pytest.raises(UserError, match=f"optimizer._target_={target}: refused"):
        construct(torch.optim.Optimizer, "optimizer", optimizer)


def test_a_class_of_another_kind_is_refused():
    with pytest.raises(UserError, match="refused, not a Optimizer"):
        construct(torch.optim.Optimizer, "optimizer", parts.Part(_target_="scm.nets.mlp.MLP"))


def test_a_module_is_granted_by_the_environment_alone(monkeypatch):
    settings = {"_target_": "closed_forms.GaussianData", "s": 0.8, "sigma_data": SD}
    part = read(settings, methods.Velocity)
    with pytest.raises(UserError, match="SCM_MODULES=MODULE in the environment grants one"):
        construct(object, "here", part)
    monkeypatch.setenv("SCM_MODULES", "closed_forms")
    assert construct(object, "here", part) == GaussianData(s=0.8, sigma_data=SD)


def test_a_part_inside_a_granted_class_is_asked_all_the_same(monkeypatch):
    monkeypatch.setenv("SCM_MODULES", "closed_forms")
    inner = {"_target_": "closed_forms.GaussianData", "s": {"_target_": "os.system"}}
    with pytest.raises(UserError, match=r"here\.s\._target_=os\.system: refused"):
        construct(object, "here", read(inner, methods.Velocity))


def test_a_setting_that_a_granted_class_does_not_take_is_named(monkeypatch):
    monkeypatch.setenv("SCM_MODULES", "closed_forms")
    part = read({"_target_": "closed_forms.GaussianData", "s": 1.0, "z": 2}, methods.Velocity)
    with pytest.raises(UserError, match=r"here\.z: GaussianData takes no such setting"):
        construct(object, "here", part)


def test_what_is_given_is_made_only_where_it_is_asked_for():
    made = []

    def teacher():
        made.append(1)
        return "the teacher"

    given = {"teacher": teacher, "sigma_data": lambda: SD}
    construct(object, "velocity", methods.Velocity(_target_="scm.method.velocity.Pair"), given)
    assert made == []
    part = methods.TeacherVelocity(_target_="scm.method.velocity.Teacher")
    built = construct(Teacher, "velocity", part, given)
    assert (built.teacher, built.sigma_data, made) == ("the teacher", SD, [1])


def test_a_constructors_complaint_is_one_line():
    fourier = parts.Fourier(
        _target_="scm.nets.embedding.Fourier", dim=4, c_noise="nothing", scale=1.0
    )
    with pytest.raises(UserError, match=r"model\.time_embedding: c_noise='nothing': use one of"):
        construct(object, "model.time_embedding", fourier, {"sigma_data": lambda: SD})
