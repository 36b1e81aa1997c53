"""What the walks over all RPCs know of each: a request that works, and what somebody of another tenant is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from server.app import SERVICES

Fields = Mapping[str, Any]

NOT_FOUND: Final = "NOT_FOUND"
EMPTY: Final = "EMPTY"
"""The reply holds nothing of the other tenant's: no message of a list, no event of a stream."""
WITHIN: Final = "WITHIN"
"""The reply says at each step of the request that it is NOT_FOUND."""
OWN: Final = "OWN"
"""The request names no tenant: the caller acts on what is its own, or on what belongs to no tenant."""


@dataclass(frozen=True)
class Target:
    """A tenant to act on, two of everything that is listed.

    Attributes:
        user_id: A person who is a member of the client and Responsible in the project.
    """

    client_id: str
    project_id: str
    campaign_id: str
    media_plan_id: str
    lineage_id: str
    member_id: str
    user_id: str
    api_key_id: str
    service_account_id: str
    integration_id: str
    file_key: str
    alert_id: str
    campaign_import_id: str
    job_id: str
    report_id: str
    suppression_id: str
    template_id: str
    prompt_id: str
    prompt_version_id: str
    prompt_experiment_id: str
    feedback_id: str

    def ids(self) -> list[str]:
        """All of them, for requests made at random."""
        return list(vars(self).values())


@dataclass(frozen=True)
class Case:
    """One RPC.

    Attributes:
        request: Fields of a request that an administrator may make of the tenant.
        foreign: What somebody is told who has the right, but in another tenant only.
        filters: Other requests that name the tenant inside a filter; they find nothing for a stranger.
        pages: Whether the tenant has two of what is listed.
    """

    request: Callable[[Target], Fields]
    foreign: str = NOT_FOUND
    filters: tuple[Callable[[Target], Fields], ...] = ()
    pages: bool = True


def _day(offset: int) -> str:
    return (datetime.now(UTC) + timedelta(days=offset)).date().isoformat()


def _dates() -> Fields:
    return {"start_date": _day(-1), "end_date": _day(1)}


def _event(target: Target) -> Fields:
    return {
        "event_id": str(uuid4()),
        "event_time": datetime.now(UTC).isoformat(),
        "campaign_id": target.campaign_id,
        "event_type": "EVENT_TYPE_IMPRESSION",
    }


def _of_project(target: Target) -> Fields:
    return {"project_id": target.project_id}


def _of_plan(target: Target) -> Fields:
    return {"media_plan_id": target.media_plan_id}


def _of_client(target: Target) -> Fields:
    return {"client_id": target.client_id}


def _of_account(target: Target) -> Fields:
    return {"service_account_id": target.service_account_id}


def _of_user(target: Target) -> Fields:
    return {"user_id": target.user_id}


def _of_campaign(target: Target) -> Fields:
    return {"campaign_id": target.campaign_id}


def _of_integration(target: Target) -> Fields:
    return {"integration_id": target.integration_id}


def _of_report(target: Target) -> Fields:
    return {"report_id": target.report_id}


def _of_template(target: Target) -> Fields:
    return {"template_id": target.template_id}


def _of_prompt(target: Target) -> Fields:
    return {"prompt_id": target.prompt_id}


def _of_version(target: Target) -> Fields:
    return {"prompt_version_id": target.prompt_version_id}


def _of_experiment(target: Target) -> Fields:
    return {"prompt_experiment_id": target.prompt_experiment_id}


def _draft() -> Fields:
    return {"template": "x", "change_note": "x"}


def _judged(target: Target) -> Fields:
    return {
        "key": uuid4().hex,
        "client_id": target.client_id,
        "prompt_version_id": target.prompt_version_id,
        "action": "FEEDBACK_ACTION_REJECTED",
    }


def _of_job(target: Target) -> Fields:
    return {"job_id": target.job_id}


def _of_try(target: Target) -> Fields:
    return {"job_id": target.job_id, "fence": 1}


def _of_alert(target: Target) -> Fields:
    return {"alert_id": target.alert_id}


_VK = {"vk_ads": {"access_token": "a-token", "refresh_token": "another"}}

CASES: Final[dict[str, Case]] = {
    "SessionService/Login": Case(lambda t: {"email": "nobody@example.com", "password": "wrong password"}, OWN),
    "SessionService/Logout": Case(lambda t: {}, OWN),
    "SessionService/GetCurrentSession": Case(lambda t: {}, OWN),
    "SessionService/ListSessions": Case(lambda t: {}, OWN, pages=False),
    "SessionService/RevokeSession": Case(lambda t: {"session_id": str(uuid4())}, OWN),
    "SessionService/RevokeAllSessions": Case(lambda t: {}, OWN),
    # People work for the agency, not for a tenant: who may see people sees all.
    "UserService/CreateUser": Case(
        lambda t: {"user": {"email": f"{uuid4().hex}@example.com", "role": "USER_ROLE_ANALYST"}}, OWN
    ),
    "UserService/GetUser": Case(_of_user, OWN),
    "UserService/ListUsers": Case(lambda t: {}, OWN),
    "UserService/UpdateUser": Case(
        lambda t: {"user": {"user_id": t.user_id, "first_name": "A"}, "update_mask": "firstName"}, OWN
    ),
    "UserService/SuspendUser": Case(_of_user, OWN),
    "UserService/RestoreUser": Case(_of_user, OWN),
    "UserService/DeleteUser": Case(_of_user, OWN),
    "UserService/ChangePassword": Case(
        lambda t: {"current_password": "not this one", "new_password": "twelve letters or more"}, OWN
    ),
    "UserService/ResetPassword": Case(_of_user, OWN),
    "UserService/CompletePasswordReset": Case(
        lambda t: {"reset_token": "not a token", "new_password": "twelve letters or more"}, OWN
    ),
    "PermissionService/CheckPermission": Case(
        lambda t: {"permission": "PERMISSION_CLIENTS_READ", "client_id": t.client_id}
    ),
    "PermissionService/ListMyPermissions": Case(lambda t: {"project_id": t.project_id}),
    "ApiKeyService/CreateApiKey": Case(
        lambda t: {"display_name": "k", "permissions": ["PERMISSION_API_KEYS_WRITE"], "client_ids": [t.client_id]}
    ),
    "ApiKeyService/GetApiKey": Case(lambda t: {"api_key_id": t.api_key_id}),
    "ApiKeyService/ListApiKeys": Case(lambda t: {}, OWN),
    "ApiKeyService/RotateApiKey": Case(lambda t: {"api_key_id": t.api_key_id}),
    "ApiKeyService/RevokeApiKey": Case(lambda t: {"api_key_id": t.api_key_id}),
    "ServiceAccountService/CreateServiceAccount": Case(
        lambda t: {"service_account": {"display_name": uuid4().hex}}, OWN
    ),
    "ServiceAccountService/GetServiceAccount": Case(_of_account, OWN),
    "ServiceAccountService/ListServiceAccounts": Case(lambda t: {}, OWN),
    "ServiceAccountService/UpdateServiceAccount": Case(
        lambda t: {"service_account": {**_of_account(t), "description": "x"}, "update_mask": "description"}, OWN
    ),
    "ServiceAccountService/DisableServiceAccount": Case(_of_account, OWN),
    "ServiceAccountService/EnableServiceAccount": Case(_of_account, OWN),
    "ServiceAccountService/DeleteServiceAccount": Case(_of_account, OWN),
    "ClientService/CreateClient": Case(
        lambda t: {
            "client": {"display_name": "c", "type": "CLIENT_TYPE_DIRECT_ADVERTISER", "parent_client_id": t.client_id}
        }
    ),
    "ClientService/GetClient": Case(_of_client),
    "ClientService/ListClients": Case(
        lambda t: {"filter": {"parent_client_id": t.client_id}},
        EMPTY,
        filters=(lambda t: {"filter": {"member_user_id": t.user_id}},),
    ),
    "ClientService/UpdateClient": Case(
        lambda t: {"client": {"client_id": t.client_id, "industry": "x"}, "update_mask": "industry"}
    ),
    "ClientService/MoveClient": Case(_of_client),
    "ClientService/ArchiveClient": Case(_of_client),
    "ClientService/RestoreClient": Case(_of_client),
    "ClientService/RequestClientPurge": Case(_of_client),
    "ClientService/ConfirmClientPurge": Case(lambda t: {"client_id": t.client_id, "confirmation_token": "x"}),
    "ClientService/AddClientMember": Case(lambda t: {"client_id": t.client_id, "user_id": t.user_id}),
    "ClientService/RemoveClientMember": Case(lambda t: {"client_id": t.client_id, "user_id": t.user_id}),
    "ClientService/ListClientMembers": Case(_of_client),
    "IntegrationService/ConnectIntegration": Case(
        lambda t: {"client_id": t.client_id, "platform_account_id": uuid4().hex, "credentials": _VK}
    ),
    "IntegrationService/GetIntegration": Case(_of_integration),
    "IntegrationService/ListIntegrations": Case(lambda t: {"filter": {"client_id": t.client_id}}, EMPTY),
    "IntegrationService/TestIntegration": Case(_of_integration),
    "IntegrationService/RotateIntegrationCredentials": Case(lambda t: {**_of_integration(t), "credentials": _VK}),
    "IntegrationService/DisconnectIntegration": Case(_of_integration),
    "ProjectService/CreateProject": Case(lambda t: {"project": {"client_id": t.client_id, "display_name": "p"}}),
    "ProjectService/GetProject": Case(_of_project),
    "ProjectService/ListProjects": Case(lambda t: {"filter": {"client_id": t.client_id}}, EMPTY),
    "ProjectService/UpdateProject": Case(
        lambda t: {"project": {"project_id": t.project_id, "description": "x"}, "update_mask": "description"}
    ),
    "ProjectService/ActivateProject": Case(_of_project),
    "ProjectService/PauseProject": Case(_of_project),
    "ProjectService/CompleteProject": Case(lambda t: {"project_id": t.project_id, "performance_rating": 5}),
    "ProjectService/ArchiveProject": Case(_of_project),
    "ProjectService/RestoreProject": Case(_of_project),
    "ProjectTeamService/AddProjectMember": Case(
        lambda t: {
            "project_member": {"project_id": t.project_id, "user_id": t.user_id, "role": "PROJECT_ROLE_SPECIALIST"}
        }
    ),
    "ProjectTeamService/UpdateProjectMember": Case(
        lambda t: {
            "project_member": {"project_member_id": t.member_id, "role": "PROJECT_ROLE_PM"},
            "update_mask": "role",
        }
    ),
    "ProjectTeamService/RemoveProjectMember": Case(lambda t: {"project_member_id": t.member_id}),
    "ProjectTeamService/ListProjectMembers": Case(_of_project),
    "ProjectTeamService/TransferAccountability": Case(
        lambda t: {"project_id": t.project_id, "project_member_id": t.member_id}
    ),
    "MediaPlanService/CreateMediaPlan": Case(
        lambda t: {"media_plan": {"project_id": t.project_id, "display_name": "m"}}
    ),
    "MediaPlanService/GetMediaPlan": Case(_of_plan),
    "MediaPlanService/ListMediaPlans": Case(
        lambda t: {"filter": {"project_id": t.project_id}},
        EMPTY,
        filters=(
            lambda t: {"filter": {"client_id": t.client_id}},
            lambda t: {"filter": {"lineage_id": t.lineage_id}},
        ),
    ),
    "MediaPlanService/UpdateMediaPlan": Case(
        lambda t: {"media_plan": {**_of_plan(t), "display_name": "x"}, "update_mask": "displayName"}
    ),
    "MediaPlanService/CreateMediaPlanVersion": Case(_of_plan),
    "MediaPlanService/DiffMediaPlans": Case(
        lambda t: {"base_media_plan_id": t.media_plan_id, "other_media_plan_id": t.media_plan_id}
    ),
    "MediaPlanService/DeleteMediaPlan": Case(_of_plan),
    "MediaPlanService/SubmitMediaPlan": Case(_of_plan),
    "MediaPlanService/ApproveMediaPlan": Case(_of_plan),
    "MediaPlanService/RejectMediaPlan": Case(lambda t: {**_of_plan(t), "comment": "x"}),
    "MediaPlanService/RecallMediaPlan": Case(lambda t: {**_of_plan(t), "comment": "x"}),
    "MediaPlanService/ActivateMediaPlan": Case(_of_plan),
    "MediaPlanService/CompleteMediaPlan": Case(_of_plan),
    "MediaPlanService/ListMediaPlanDecisions": Case(_of_plan),
    "MediaPlanService/CreateMediaPlanComment": Case(lambda t: {"comment": {**_of_plan(t), "text": "x"}}),
    "MediaPlanService/ListMediaPlanComments": Case(_of_plan),
    "BenchmarkService/ListBenchmarks": Case(lambda t: {"currency_code": "XXX"}, OWN),
    "ForecastService/ForecastMediaPlan": Case(_of_plan),
    "ForecastService/CompareScenarios": Case(lambda t: {"scenarios": [_of_plan(t), _of_plan(t)]}),
    "ForecastService/GetPlanPerformance": Case(_of_plan),
    "ReportService/GenerateReport": Case(
        lambda t: {
            **_of_project(t),
            "dates": _dates(),
            "type": "REPORT_TYPE_PERFORMANCE",
            "format": "REPORT_FORMAT_JSON",
            "language": "REPORT_LANGUAGE_EN",
        }
    ),
    "ReportService/RegenerateReport": Case(_of_report),
    "ReportService/GetReport": Case(_of_report),
    "ReportService/ListReports": Case(
        lambda t: {"filter": {"client_id": t.client_id}},
        EMPTY,
        filters=(lambda t: {"filter": {"project_id": t.project_id}},),
    ),
    "ReportService/DownloadReport": Case(_of_report),
    "ReportService/GetReportDownloadUrl": Case(_of_report),
    "PromptService/CreatePrompt": Case(
        lambda t: {
            "client_id": t.client_id,
            "name": uuid4().hex,
            "category": "PROMPT_CATEGORY_BRIEF",
            "draft": _draft(),
        }
    ),
    "PromptService/GetPrompt": Case(_of_prompt),
    "PromptService/ListPrompts": Case(
        lambda t: {"filter": {"client_id": t.client_id}},
        EMPTY,
        filters=(lambda t: {"filter": {"name": f"of {t.client_id}"}},),
    ),
    "PromptService/CreatePromptVersion": Case(lambda t: {**_of_prompt(t), "draft": _draft()}),
    "PromptService/GetPromptVersion": Case(_of_version),
    "PromptService/ListPromptVersions": Case(_of_prompt),
    "PromptService/DeprecatePromptVersion": Case(lambda t: {**_of_version(t), "reason": "x"}),
    "PromptService/RestorePromptVersion": Case(_of_version),
    "PromptService/MovePromptLabel": Case(lambda t: {**_of_version(t), "label": "staging", "reason": "x"}),
    "PromptService/RollbackPromptLabel": Case(lambda t: {**_of_prompt(t), "label": "staging", "reason": "x"}),
    "PromptService/ListPromptLabelMoves": Case(_of_prompt),
    "PromptService/RenderPrompt": Case(
        _of_version,
        filters=(
            lambda t: {"reference": {"client_id": t.client_id, "name": f"of {t.client_id}", "label": "staging"}},
            lambda t: {"reference": {"name": f"of {t.client_id}", "label": "staging"}},
        ),
    ),
    "PromptExperimentService/StartPromptExperiment": Case(
        lambda t: {**_of_prompt(t), "label": "staging", "shares": [{**_of_version(t), "weight": 1}] * 2}
    ),
    "PromptExperimentService/StopPromptExperiment": Case(lambda t: {**_of_experiment(t), "reason": "x"}),
    "PromptExperimentService/GetPromptExperiment": Case(_of_experiment),
    "PromptExperimentService/ListPromptExperiments": Case(
        lambda t: {"filter": {"client_id": t.client_id}},
        EMPTY,
        filters=(lambda t: {"filter": _of_prompt(t)},),
    ),
    "PromptExperimentService/GetPromptExperimentResult": Case(_of_experiment),
    "PromptExperimentService/PromotePromptExperiment": Case(
        lambda t: {**_of_experiment(t), **_of_version(t), "reason": "x"}
    ),
    "FeedbackService/RecordFeedback": Case(lambda t: {"record": _judged(t)}),
    "FeedbackService/BatchRecordFeedback": Case(lambda t: {"records": [_judged(t)]}, WITHIN),
    "FeedbackService/RecordFeedbackStream": Case(lambda t: {"records": [_judged(t)]}, WITHIN),
    "FeedbackService/GetFeedback": Case(lambda t: {"feedback_id": t.feedback_id}),
    "FeedbackService/ListFeedback": Case(
        lambda t: {"filter": {"client_ids": [t.client_id]}},
        EMPTY,
        filters=(
            lambda t: {"filter": {"project_id": t.project_id}},
            lambda t: {"filter": {"prompt_version_id": t.prompt_version_id}},
        ),
    ),
    "FeedbackService/GetFeedbackStatistics": Case(
        lambda t: {"filter": {"client_ids": [t.client_id]}, "dimensions": ["FEEDBACK_DIMENSION_CLIENT"]},
        EMPTY,
        filters=(lambda t: {"filter": {"prompt_version_id": t.prompt_version_id}},),
    ),
    "TemplateService/CreateTemplate": Case(
        lambda t: {
            "template": {
                "client_id": t.client_id,
                "display_name": "t",
                "artifact_type": "ARTIFACT_TYPE_REPORT",
                "columns": [{"name": "Clicks"}],
            }
        }
    ),
    "TemplateService/UploadTemplate": Case(
        lambda t: {
            "upload": {"client_id": t.client_id, "file_name": "a.csv", "artifact_type": "ARTIFACT_TYPE_REPORT"},
            "data": "YTtiCjE7Mgo=",
        }
    ),
    "TemplateService/GetTemplate": Case(_of_template),
    "TemplateService/ListTemplates": Case(lambda t: {"filter": {"client_id": t.client_id}}, EMPTY),
    "TemplateService/UpdateTemplate": Case(
        lambda t: {"template": {**_of_template(t), "display_name": "x"}, "update_mask": "displayName"}
    ),
    "TemplateService/DeleteTemplate": Case(_of_template),
    "TemplateService/SuggestTemplate": Case(
        lambda t: {"columns": [{"name": "Clicks"}], "filter": {"client_id": t.client_id}}, EMPTY
    ),
    "TemplateService/UseTemplate": Case(_of_template),
    "SearchService/SearchProjects": Case(
        lambda t: {"query": "Project", "filter": {"client_id": t.client_id}},
        EMPTY,
        filters=(_of_project,),
        pages=False,
    ),
    # A token without a question is refused for the question: tests/search/test_search.py has the pages of searches.
    "SearchService/SearchTemplates": Case(lambda t: {"query": "clicks", "client_id": t.client_id}, EMPTY, pages=False),
    "SearchService/FindExamples": Case(lambda t: {"query": "x", "client_id": t.client_id}, EMPTY, pages=False),
    "CampaignService/CreateCampaign": Case(
        lambda t: {"campaign": {"project_id": t.project_id, "display_name": "c", "platform": "PLATFORM_OTHER"}}
    ),
    "CampaignService/GetCampaign": Case(lambda t: {"campaign_id": t.campaign_id}),
    "CampaignService/ListCampaigns": Case(
        lambda t: {"filter": {"project_id": t.project_id}},
        EMPTY,
        filters=(lambda t: {"filter": {"client_id": t.client_id}},),
    ),
    "CampaignService/UpdateCampaign": Case(
        lambda t: {"campaign": {"campaign_id": t.campaign_id, "display_name": "x"}, "update_mask": "displayName"}
    ),
    "CampaignService/SubmitCampaign": Case(_of_campaign),
    "CampaignService/ActivateCampaign": Case(_of_campaign),
    "CampaignService/PauseCampaign": Case(_of_campaign),
    "CampaignService/ResumeCampaign": Case(_of_campaign),
    "CampaignService/ArchiveCampaign": Case(_of_campaign),
    "CampaignService/RestoreCampaign": Case(_of_campaign),
    "CampaignService/RejectCampaign": Case(lambda t: {"campaign_id": t.campaign_id, "reason": "too loud"}),
    "CampaignService/LinkExternalCampaign": Case(
        lambda t: {"campaign_id": t.campaign_id, "integration_id": t.integration_id, "external_id": "7"}
    ),
    "CampaignService/UnlinkExternalCampaign": Case(_of_campaign),
    "CampaignService/MutateCampaigns": Case(
        lambda t: {"operations": [{"pause": {"campaign_id": t.campaign_id}}]}, WITHIN
    ),
    "SyncService/SyncIntegration": Case(_of_integration),
    "SyncService/GetSyncStatus": Case(_of_integration),
    "SyncService/ListUnlinkedCampaigns": Case(lambda t: {"filter": _of_integration(t)}),
    "SyncService/PublishCampaign": Case(lambda t: {"campaign_id": t.campaign_id, "integration_id": t.integration_id}),
    "SyncService/ConfigureSync": Case(lambda t: {**_of_integration(t), "settings": {"goals": [{"goal_id": "7"}]}}),
    "CampaignImportService/ImportCampaigns": Case(
        lambda t: {
            "options": {"project_id": t.project_id, "fingerprint": (uuid4().hex * 2)},
            "rows": [{"line": 2, "external_id": uuid4().hex, "platform": "PLATFORM_OTHER"}],
            "last": True,
        }
    ),
    "CampaignImportService/GetCampaignImport": Case(lambda t: {"campaign_import_id": t.campaign_import_id}),
    "CampaignImportService/ListCampaignImports": Case(
        lambda t: {"filter": {"client_id": t.client_id}},
        EMPTY,
        filters=(lambda t: {"filter": {"project_id": t.project_id}},),
    ),
    "CampaignImportService/ListCampaignImportErrors": Case(lambda t: {"campaign_import_id": t.campaign_import_id}),
    "BackfillService/StoreBackfillChunk": Case(
        lambda t: {
            "client_id": t.client_id,
            "fingerprint": uuid4().hex * 2,
            "month": "2020-04",
            "snapshots": [{"campaign_id": t.campaign_id, "date": "2020-04-01", "delivery": {"impressions": 1}}],
        }
    ),
    "BackfillService/GetBackfill": Case(lambda t: {"client_id": t.client_id, "fingerprint": "ab" * 32}),
    "StatisticsService/AppendEvents": Case(
        lambda t: {"client_id": t.client_id, "stream_id": uuid4().hex, "batch": {"events": [_event(t)]}}
    ),
    "StatisticsService/IngestEvents": Case(lambda t: {"client_id": t.client_id, "batch": {"events": [_event(t)]}}),
    "StatisticsService/AppendMetrics": Case(
        lambda t: {
            "client_id": t.client_id,
            "source": "METRICS_SOURCE_PLATFORM",
            "version": 1,
            "snapshots": [
                {"campaign_id": t.campaign_id, "date": _day(-1), "delivery": {"impressions": 1, "clicks": 1}}
            ],
        }
    ),
    "StatisticsService/ListQuarantinedEvents": Case(_of_client),
    "StatisticsService/ExportStatistics": Case(
        lambda t: {
            "dates": _dates(),
            "granularity": "GRANULARITY_HOUR",
            "filter": {"client_ids": [t.client_id]},
        },
        NOT_FOUND,
        filters=(
            lambda t: {"dates": _dates(), "granularity": "GRANULARITY_DAY", "filter": {"project_ids": [t.project_id]}},
            lambda t: {
                "dates": _dates(),
                "granularity": "GRANULARITY_DAY",
                "filter": {"campaign_ids": [t.campaign_id]},
            },
        ),
    ),
    "StatisticsService/QueryStatistics": Case(
        lambda t: {
            "dates": _dates(),
            "granularity": "GRANULARITY_DAY",
            "filter": {"client_ids": [t.client_id]},
        },
        NOT_FOUND,
        filters=(
            lambda t: {"dates": _dates(), "granularity": "GRANULARITY_DAY", "filter": {"project_ids": [t.project_id]}},
            lambda t: {
                "dates": _dates(),
                "granularity": "GRANULARITY_DAY",
                "filter": {"campaign_ids": [t.campaign_id]},
            },
        ),
    ),
    "StatisticsService/WatchMetrics": Case(_of_client),
    "StatisticsService/GetFreshness": Case(_of_client),
    "RollupService/RunRollup": Case(
        lambda t: {"client_id": t.client_id, "dates": {"start_date": _day(-9), "end_date": _day(-2)}}
    ),
    "RollupService/ListRestatements": Case(_of_client, EMPTY, pages=False),
    "RollupService/ListRollupChecks": Case(_of_client, EMPTY, pages=False),
    "StatisticsFileService/WriteStatisticsFile": Case(
        lambda t: {
            "client_id": t.client_id,
            "file_name": f"{uuid4().hex}.parquet",
            "dates": _dates(),
            "granularity": "GRANULARITY_DAY",
        }
    ),
    "StatisticsFileService/GetStatisticsFile": Case(lambda t: {"key": t.file_key}),
    "StatisticsFileService/ListStatisticsFiles": Case(_of_client),
    "StatisticsFileService/GetStatisticsFileContent": Case(lambda t: {"key": t.file_key}),
    "StatisticsFileService/UploadStatisticsFile": Case(
        lambda t: {"client_id": t.client_id, "file_name": f"{uuid4().hex}.parquet", "data": "UEFSMQ=="}
    ),
    "StatisticsFileService/ImportEvents": Case(lambda t: {"client_id": t.client_id, "key": t.file_key}),
    "StatisticsFileService/ImportMetrics": Case(
        lambda t: {"client_id": t.client_id, "key": t.file_key, "source": "METRICS_SOURCE_IMPORT", "version": 1}
    ),
    "ChangeService/ListChanges": Case(
        lambda t: {"filter": {"client_id": t.client_id}},
        EMPTY,
        filters=(
            lambda t: {"filter": {"project_id": t.project_id}},
            lambda t: {"filter": {"resource_types": ["campaign"], "resource_id": t.campaign_id}},
        ),
    ),
    "ChangeService/WatchChanges": Case(lambda t: {"filter": {"client_id": t.client_id}}, EMPTY),
    "JobService/GetJob": Case(_of_job),
    "JobService/ListJobs": Case(lambda t: {"filter": {"client_id": t.client_id}}, EMPTY),
    "JobService/WatchJob": Case(_of_job),
    "JobService/CancelJob": Case(_of_job),
    "JobService/RetryJob": Case(_of_job),
    # Vectors are looked after as a whole.
    "EmbeddingService/GetEmbeddingStatus": Case(lambda t: {}, OWN),
    "EmbeddingService/RunEmbedding": Case(lambda t: {}, OWN),
    "EmbeddingService/ReconcileEmbeddings": Case(lambda t: {"kind": "project"}, OWN),
    "EmbeddingService/ReembedKind": Case(lambda t: {"kind": "project"}, OWN),
    # The archive is of the whole service, and so are erasures.
    "RetentionService/GetRetentionStatus": Case(lambda t: {}, OWN),
    "RetentionService/ListArchiveMonths": Case(lambda t: {}, OWN, pages=False),
    "RetentionService/RunRetention": Case(lambda t: {}, OWN),
    "RetentionService/RestoreArchiveMonth": Case(
        lambda t: {"table": "ARCHIVE_TABLE_CAMPAIGN_EVENTS", "month": "2001-01"}, OWN
    ),
    "RetentionService/SetLegalHold": Case(lambda t: {"client_id": t.client_id, "reason": "x"}),
    "RetentionService/LiftLegalHold": Case(_of_client),
    "RetentionService/ListLegalHolds": Case(lambda t: {}, EMPTY, pages=False),
    "ErasureService/EraseUserIds": Case(_of_client),
    "ErasureService/GetErasure": Case(lambda t: {"erasure_id": str(uuid4())}, OWN),
    "ErasureService/ListErasures": Case(lambda t: {}, OWN, pages=False),
    # Queues are of the whole service.
    "JobService/ListQueues": Case(lambda t: {}, OWN),
    "JobService/PauseQueue": Case(lambda t: {"name": "QUEUE_NAME_REPORTS", "reason": "x"}, OWN),
    "JobService/ResumeQueue": Case(lambda t: {"name": "QUEUE_NAME_REPORTS"}, OWN),
    "JobService/UpdateQueue": Case(
        lambda t: {"queue": {"name": "QUEUE_NAME_REPORTS"}, "update_mask": "concurrency"}, OWN
    ),
    "JobService/ClaimJob": Case(lambda t: {**_of_job(t), "holder": "w"}),
    "JobService/HeartbeatJob": Case(_of_try),
    "JobService/CompleteJob": Case(_of_try),
    "JobService/FailJob": Case(lambda t: {**_of_try(t), "error": "x"}),
    "JobService/ReleaseJob": Case(_of_try),
    "AlertService/ListAlerts": Case(
        lambda t: {"filter": {"client_id": t.client_id}},
        EMPTY,
        filters=(
            lambda t: {"filter": {"project_id": t.project_id}},
            lambda t: {"filter": {"campaign_id": t.campaign_id}},
        ),
    ),
    "AlertService/GetAlert": Case(_of_alert),
    "AlertService/AcknowledgeAlert": Case(_of_alert),
    "AlertService/ResolveAlert": Case(_of_alert),
    "BudgetService/GetBudgetStatus": Case(
        _of_project,
        filters=(_of_plan, lambda t: {"campaign_id": t.campaign_id}),
    ),
    "BudgetService/GetBudgetAlertPolicy": Case(
        lambda t: {"campaign_id": t.campaign_id},
        filters=(_of_client,),
    ),
    "BudgetService/UpdateBudgetAlertPolicy": Case(
        lambda t: {"policy": {"campaign_id": t.campaign_id, "muted": True}, "update_mask": "muted"}
    ),
    # Addresses belong to people, not to a tenant.
    "EmailService/Unsubscribe": Case(lambda t: {"token": "not one of ours"}, OWN),
    "EmailService/CreateEmailSuppression": Case(lambda t: {"address": f"{uuid4().hex}@example.com"}, OWN),
    "EmailService/DeleteEmailSuppression": Case(lambda t: {"email_suppression_id": t.suppression_id}, OWN),
    "EmailService/ListEmailSuppressions": Case(lambda t: {}, OWN),
    "UsageService/GetUsage": Case(lambda t: {**_of_client(t), "dates": _dates()}),
    # Schemas are of the whole service.
    "SystemService/GetMigrationStatus": Case(lambda t: {}, OWN),
    "ChangeService/GetOldestChangeToken": Case(lambda t: {"filter": {"client_id": t.client_id}}, OWN),
}

METHODS: Final = {f"{service.name}/{method.name}": method for service in SERVICES for method in service.methods}


def message(name: str, fields: Fields) -> Message:
    """A request of an RPC; `name` is its key in CASES."""
    return ParseDict(dict(fields), GetMessageClass(METHODS[name].input_type)())


def streams(method: MethodDescriptor) -> bool:
    """Whether an RPC streams in any direction."""
    return method.client_streaming or method.server_streaming
