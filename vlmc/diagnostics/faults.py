"""What a user is told without a traceback; needs nothing else of vlmc."""


class UsageError(Exception):
    """A command that cannot mean anything, such as a file that is not there. Exit code 2."""


class EnvironmentFault(Exception):
    """The design is sound but this machine cannot do what was asked. Exit code 3."""
