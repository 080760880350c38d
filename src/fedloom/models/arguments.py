"""Fill in the arguments of a model factory by their usual names (``input_shape``, ``num_classes``, ``width``...)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from fedloom.errors import ModelError

# Names are compared in lower case, without underscores.
_SHAPE = {"inputshape", "shape", "inshape", "imageshape", "imgshape", "datashape", "xshape", "inputdims"}
_CLASSES = {
    *("numclasses", "nclasses", "classes", "nbclasses", "numclass", "numberofclasses", "classcount", "numlabels"),
    *("nlabels", "outputdim", "outdim", "outfeatures", "outputsize", "numoutputs", "noutputs", "outputs"),
}
_FEATURES = {
    *("infeatures", "inputdim", "indim", "nfeatures", "numfeatures", "inputsize", "insize", "numinputs", "ninputs"),
    *("inputfeatures",),
}
_CHANNELS = {
    *("inchannels", "inputchannels", "imgchannels", "imagechannels", "nchannels", "numchannels", "inchans", "inch"),
}
_HEIGHT = {"imgheight", "imageheight", "imgrows", "inputheight"}
_WIDTH = {"imgwidth", "imagewidth", "imgcols", "inputwidth"}
# These mean the image only beside a height and a width: a network has a width and a depth of its own.
_LOOSE = {
    **dict.fromkeys(("height", "h", "rows"), "height"),
    **dict.fromkeys(("width", "w", "cols"), "width"),
    **dict.fromkeys(("depth", "channels", "c", "d"), "channels"),
}


def fill(
    function: Callable[..., object], input_shape: tuple[int, ...], n_classes: int, name: str
) -> tuple[list[Any], dict[str, Any]]:
    """Choose the arguments to call ``function`` with.

    A parameter with a default keeps it, unless its name is known and the default does not fit the data: another
    number, or a shape with another number of elements.

    Args:
        function: A function or a class.
        input_shape: The shape of one sample.
        n_classes: The number of classes.
        name: What to call the function in a message.

    Returns:
        The positional and the named arguments.

    Raises:
        ModelError: A required parameter has a name that is not known; the message says what is offered.

    Example:
        >>> def build(width, height, depth, classes, dropout=0.5): ...
        >>> fill(build, (28, 20), 10, "build")
        ([], {'width': 20, 'height': 28, 'depth': 1, 'classes': 10})
    """
    positional: list[Any] = []
    named: dict[str, Any] = {}
    parameters = _parameters(function)
    loose = {_LOOSE.get(_plain(parameter.name)) for parameter in parameters}
    for parameter in parameters:
        offered = _offer(parameter, input_shape, n_classes, {"height", "width"} <= loose)
        required = parameter.default is inspect.Parameter.empty
        if offered is None and required:
            raise ModelError(
                f"{name} needs an argument '{parameter.name}', which is not known here: give it a default "
                f"(offered are input_shape={input_shape}, num_classes={n_classes}, height, width, channels, "
                "in_features, in_channels)",
                argument=parameter.name,
            )
        value = offered if offered is not None and (required or _misfit(parameter.default, offered)) else None
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            positional.append(parameter.default if value is None else value)
        elif value is not None:
            named[parameter.name] = value
    return positional, named


def image_size(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Read (height, width, channels) from the shape of one image, channels first or last; None for other shapes.

    Example:
        >>> image_size((28, 28)), image_size((32, 32, 3)), image_size((1, 28, 28)), image_size((64,))
        ((28, 28, 1), (32, 32, 3), (28, 28, 1), None)
    """
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if len(shape) != 3:
        return None
    first = shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    return (shape[1], shape[2], shape[0]) if first else (shape[0], shape[1], shape[2])


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    # A class of Keras or PyTorch may have a __new__(*args, **kwargs), which inspect would prefer to __init__.
    if isinstance(function, type):
        if function.__init__ is object.__init__:  # type: ignore[misc]
            return []
        found = list(inspect.signature(function.__init__).parameters.values())[1:]  # type: ignore[misc]
    else:
        found = list(inspect.signature(function).parameters.values())
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter for parameter in found if parameter.kind not in variable]


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def _offer(parameter: inspect.Parameter, shape: tuple[int, ...], n_classes: int, image: bool) -> Any:
    """The value for a parameter, by its name; None when the name is not known or means nothing for these data."""
    plain = _plain(parameter.name)
    required = parameter.default is inspect.Parameter.empty
    if plain in _SHAPE:
        return shape
    if plain in _CLASSES:
        return n_classes
    if plain in _FEATURES:
        return math.prod(shape)
    size = image_size(shape)
    if size is None:
        return None
    height, width, channels = size
    if plain in _HEIGHT:
        return height
    if plain in _WIDTH:
        return width
    if plain in _CHANNELS or (plain == "channels" and required):
        return channels
    if plain in ("imagesize", "imgsize") and height == width:
        return height
    return {"height": height, "width": width, "channels": channels}.get(_LOOSE.get(plain, "")) if image else None


def _misfit(default: object, offered: object) -> bool:
    if default is None:
        return True
    if isinstance(offered, tuple):
        return isinstance(default, tuple | list) and math.prod(d or 0 for d in default) != math.prod(offered)
    return isinstance(default, int) and not isinstance(default, bool) and default != offered
