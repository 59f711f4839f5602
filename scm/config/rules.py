"""Combinations of settings that make no sense, each refused in one line before anything is built.

Types and ranges of single values have been checked by then (`scm.config.read`). Values that only an
object can judge (a sampler's times, a model's image size) are judged when it is built.
"""

from importlib.util import find_spec

from scm.config import allow, metrics
from scm.config.methods import (
    Difference,
    Endpoint,
    Eulerian,
    GuidedTeacherVelocity,
    Lagrangian,
    Velocity,
)
from scm.config.parts import Bimodal, Kind, Ode, Sampler
from scm.config.read import flatten, plain
from scm.config.schema import Compile, Config, Facts
from scm.core.errors import UserError
from scm.core.files import found

FROM_TEACHER = "teacher"  # objective.init: start from the teacher's weights


def check(config: Config) -> Config:
    """The config itself. Raises UserError naming key, value and remedy where it is impossible."""
    for key, value in flatten(plain(config)).items():
        if key.endswith("_target_"):
            allow.check_home(key, value)
    _check_trainer(config)
    _check_weighting(config)
    _check_matching(config)
    _check_paths(config)
    if not config.sampler:
        raise UserError("sampler: none is chosen; use for example sampler=[one_step,two_step]")
    for name, sampler in config.sampler.items():
        check_sampler(name, sampler, config.objective.learns)
    _check_flow_map(config)
    _check_velocity(config)
    derivative = config.objective.derivative if isinstance(config.objective, Eulerian) else None
    if isinstance(derivative, Difference):
        _check_grid("objective.derivative", derivative)
    metrics.check_optimized(config)
    for name, logger in config.logger.items():
        if logger.package and find_spec(logger.package) is None:
            raise UserError(
                f"logger={name}: needs the package {logger.package}; "
                f"pip install -e '.[{logger.package}]', or leave this logger out"
            )
    return config


def _check_trainer(config: Config) -> None:
    budget = config.trainer.budget
    if budget.steps is None and budget.images is None and budget.minutes is None:
        raise UserError(
            "trainer.budget: steps, images and minutes are all null, so the run would never end; "
            "set one, for example trainer.budget.steps=3000"
        )
    if config.trainer.compile is Compile.cuda_graphs and config.trainer.micro_batch_size:
        raise UserError(
            "trainer.compile=cuda_graphs: its graphs reuse the memory that gradients would be "
            "added up in; use trainer.compile=default, or trainer.micro_batch_size=null"
        )


def _check_flow_map(config: Config) -> None:
    """A flow map has a second time in all its parts, and other objectives have it in none."""
    model, objective = config.model, config.objective
    is_map = objective.learns is Kind.flow_map
    derivative = getattr(objective, "derivative", None)
    direction = getattr(objective, "direction", None)
    for key, value, fits in (
        ("model.second_time", model.second_time, model.second_time or not is_map),
        ("objective.times", objective.times._target_, objective.times.pairs in (None, is_map)),
        ("objective.velocity", objective.velocity._target_, is_map or not objective.velocity.maps),
        (
            "objective.direction",
            direction and direction._target_,
            direction is None or (is_map and not direction.needs_teacher),
        ),
        ("objective.derivative", "difference", not (is_map and isinstance(derivative, Difference))),
    ):
        if not fits:
            raise UserError(
                f"{key}={value}: objective={objective.name} learns {objective.learns.name}, which "
                "it does not go with; leave it to the objective"
            )
    if model.second_time and model.time_embedding.c_noise == "log":
        raise UserError(
            "model.time_embedding.c_noise=log: infinite at s = 0, which model.second_time asks "
            "for; use model.time_embedding.c_noise=t"
        )


def _check_velocity(config: Config) -> None:
    objective = config.objective
    is_exact = isinstance(config.data, Bimodal) and not config.model.num_classes
    for key, one in _velocities(config).items():
        if one.exact and not is_exact:
            raise UserError(
                f"{key}={one._target_}: only data=bimodal without classes has it in closed form; "
                "use the option pair, or teacher, of objective/velocity"
            )
    if isinstance(objective, Lagrangian | Endpoint) and not objective.velocity.anywhere:
        raise UserError(
            f"objective.velocity={objective.velocity._target_}: objective={objective.name} asks "
            "for the velocity off the pair's own line, where it is not known; use "
            "objective/velocity=teacher, or objective/velocity=own with a flow map"
        )


def _velocities(config: Config) -> dict[str, Velocity]:
    found = {"objective.velocity": config.objective.velocity}
    return found | ({"matching.velocity": config.matching.velocity} if config.matching else {})


def _check_matching(config: Config) -> None:
    if (matching := config.matching) is None:
        return
    objective = config.objective
    if objective.learns is Kind.velocity:
        raise UserError(
            f"matching: objective={objective.name} makes no samples in one or two calls; use "
            "matching=none, or an objective that learns them, as objective=scd does"
        )
    velocity, is_map = matching.velocity, objective.learns is Kind.flow_map
    if not velocity.anywhere or (velocity.maps and not is_map) or matching.times.pairs:
        key, value = ("times", matching.times) if matching.times.pairs else ("velocity", velocity)
        raise UserError(
            f"matching.{key}={value._target_}: matching compares samples with the data at a point "
            "and one time; leave it at its default, or use "
            "objective/velocity@matching.velocity=teacher"
        )


def _check_weighting(config: Config) -> None:
    if config.weighting.changes_tangent and config.objective.has_tangent is False:
        raise UserError(
            f"weighting._target_={config.weighting._target_}: changes the tangent, and "
            f"objective={config.objective.name} has none; use weighting=unit or weighting=inv_sigma"
        )


def _check_paths(config: Config) -> None:
    objective = config.objective
    if objective.teacher_recipe is None:
        needing = [key for key, one in _velocities(config).items() if one.needs_teacher]
        if needing and objective.teacher is None:
            raise UserError(
                f"objective.teacher=null: {needing[0]} is that of a diffusion model; "
                "train one with `python run.py objective=diffusion hydra.run.dir=outputs/teacher` "
                "and add objective.teacher=outputs/teacher"
            )
        _check_exists("objective.teacher", objective.teacher)
    if objective.init != FROM_TEACHER:
        _check_exists("objective.init", objective.init)
    for key, one in _velocities(config).items():
        if isinstance(one, GuidedTeacherVelocity):
            _check_exists(f"{key}.guide", one.guide)


def _check_exists(key: str, path: str | None) -> None:
    if path is not None and not found(path).exists():
        raise UserError(
            f"{key}={path}: no such file or folder; name a run's folder or a file of weights"
        )


def check_sampler(name: str, sampler: Sampler, learns: Kind) -> None:
    """Raise UserError where this sampler makes no sense, or none for a network that learns this."""
    if learns not in sampler.suits:
        suited = ", ".join(kind.name for kind in sampler.suits)
        raise UserError(
            f"sampler={name}: needs a network that learns {suited}, and this one learns "
            f"{learns.name}; choose one_step and two_step, for example"
        )
    if isinstance(sampler, Ode):
        _check_grid(f"sampler.{name}", sampler)


def _check_grid(key: str, grid: Ode | Difference) -> None:
    if grid.sigma_min >= grid.sigma_max:
        raise UserError(
            f"{key}.sigma_min={grid.sigma_min}: must be below {key}.sigma_max={grid.sigma_max}"
        )


def check_fits(
    theirs: Config | Facts, mine: Config | Facts, source: str, *, or_classless: bool = False
) -> None:
    """Raise UserError where a network of config `theirs`, out of `source`, has other data.

    `or_classless`: it may also be one without classes where this run has them.
    """
    classes = theirs.model.num_classes, mine.model.num_classes
    for key, given, ours in (
        ("data.name", theirs.data.name, mine.data.name),
        ("data.sigma_data", theirs.data.sigma_data, mine.data.sigma_data),
        ("model.num_classes", *(classes if classes[0] or not or_classless else (0, 0))),
    ):
        if ours != given:
            raise UserError(
                f"{source}: trained with {key}={given}, this run has {ours}; make them equal"
            )


def check_velocity(theirs: Config | Facts, source: str) -> None:
    """Raise UserError where a network of config `theirs` is none that can be distilled."""
    if theirs.objective.learns is not Kind.velocity:
        raise UserError(
            f"{source}: learns {theirs.objective.learns.name}, so it is not a velocity to distil; "
            "train one with objective=diffusion"
        )


def check_same_network(
    theirs: Config | Facts,
    mine: Config | Facts,
    source: str,
    otherwise: str = "train from scratch with objective.init=null",
) -> None:
    """Weights may fit a network by their shapes alone and still mean something else in it."""
    given, ours = flatten(plain(theirs.model), "model"), flatten(plain(mine.model), "model")
    free = {"model.dropout"}
    # a second time and classes enter by layers that start at zero: they count nothing yet
    free |= {"model.second_time"} if mine.model.second_time else set()
    free |= set() if theirs.model.num_classes else {"model.num_classes"}
    for key in sorted((ours | given).keys() - free):
        if ours.get(key) != given.get(key):
            raise UserError(
                f"{source}: its weights are of another network, with {key}={given.get(key)}, and "
                f"this run has {ours.get(key)}; make them equal, or {otherwise}"
            )
