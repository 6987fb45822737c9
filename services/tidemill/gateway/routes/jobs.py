"""Training jobs, their progress and logs, and what a job can be made of."""

from tidemill.gateway.operations import Rpc

_JOB = "jobs/{job}"

RPCS = (
    Rpc(verb="POST", path="/jobs", call="TrainingService.CreateJob", body="spec", status=201, tag="Jobs"),
    Rpc(verb="GET", path="/jobs", call="TrainingService.ListJobs", tag="Jobs"),
    Rpc(verb="GET", path="/jobs/{job}", call="TrainingService.GetJob", bind={"name": _JOB}, tag="Jobs"),
    Rpc(verb="POST", path="/jobs/{job}:cancel", call="TrainingService.CancelJob", bind={"name": _JOB}, tag="Jobs"),
    Rpc(verb="POST", path="/jobs/{job}:pause", call="TrainingService.PauseJob", bind={"name": _JOB}, tag="Jobs"),
    Rpc(verb="POST", path="/jobs/{job}:resize", call="TrainingService.ResizeJob", bind={"name": _JOB}, tag="Jobs"),
    Rpc(verb="POST", path="/jobs/{job}:resume", call="TrainingService.ResumeJob", bind={"name": _JOB}, tag="Jobs"),
    Rpc(verb="DELETE", path="/jobs/{job}", call="TrainingService.DeleteJob", bind={"name": _JOB}, tag="Jobs"),
    Rpc(
        verb="GET",
        path="/jobs/{job}/events",
        call="TrainingService.WatchJob",
        bind={"name": _JOB},
        event="job",
        tag="Jobs",
    ),
    Rpc(
        verb="GET",
        path="/jobs/{job}/history",
        call="TrainingService.StreamEvents",
        bind={"name": _JOB},
        event="event",
        resume=("number", "from_number"),
        tag="Jobs",
    ),
    Rpc(
        verb="GET",
        path="/jobs/{job}/explanation",
        call="TrainingService.ExplainJob",
        bind={"name": _JOB},
        tag="Jobs",
    ),
    Rpc(
        verb="GET",
        path="/jobs/{job}/logs",
        call="TrainingService.StreamLogs",
        bind={"name": _JOB},
        event="line",
        resume=("line", "from_line"),
        tag="Jobs",
    ),
    Rpc(verb="GET", path="/catalogue", call="TrainingService.ListCatalogue", tag="Jobs"),
)
