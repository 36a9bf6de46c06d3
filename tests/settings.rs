//! Every key of the configuration, and the test that sees its effect from outside.

mod gateway;
mod model;
mod outbox;
mod program;
mod runtime;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{chaos, harness::runtime::tool, log_levels, log_queries, needs, openai, openai_models, stopping};

/// A key and the test that sees what it does. A key that does nothing is removed, or made to work.
const OBSERVED: &[(&str, fn())] = &[
    ("runtime.data_dir", runtime::it_lives_and_listens_where_it_is_told),
    ("bus.endpoints", runtime::it_lives_and_listens_where_it_is_told),
    ("bus.send_queue_messages", runtime::the_bus_keeps_to_its_bounds),
    ("bus.send_queue_bytes", runtime::the_bus_keeps_to_its_bounds),
    ("bus.sessions_max", runtime::the_bus_keeps_to_its_bounds),
    ("bus.retained_bytes_max", runtime::the_bus_keeps_to_its_bounds),
    ("gateway.listen", runtime::it_lives_and_listens_where_it_is_told),
    ("gateway.token_rate", crate::gateway_limits::who_asks_too_often_is_told_when_to_come_back_and_nobody_else_pays_for_it),
    ("gateway.address_rate", crate::gateway_limits::an_address_has_one_allowance_for_all_its_tokens_and_liveness_answers_beside_a_flood),
    ("gateway.failure_rate", crate::gateway_limits::wrong_tokens_are_limited_harder_and_the_right_one_goes_on),
    ("gateway.host_names", crate::gateway_boundary::a_request_by_a_name_that_is_not_ours_is_refused_whatever_it_asks_for),
    ("gateway.allowed_origins", crate::gateway_boundary::only_pages_that_were_allowed_may_ask_from_elsewhere),
    ("gateway.tls_certificate", crate::gateway_tls::with_a_certificate_the_gateway_speaks_tls_and_everything_that_names_it_says_so),
    ("gateway.tls_key", crate::gateway_tls::a_certificate_or_key_that_cannot_be_used_is_refused_at_the_start_and_by_check_with_the_reason),
    ("gateway.workers", gateway::so_many_threads_answer_as_there_are_workers),
    (
        "gateway.body_bytes_max",
        gateway::a_client_that_stalls_is_let_go_at_the_limit_of_its_step_and_others_are_served,
    ),
    (
        "gateway.streams_max",
        gateway::a_client_that_stalls_is_let_go_at_the_limit_of_its_step_and_others_are_served,
    ),
    (
        "gateway.head_timeout",
        gateway::a_client_that_stalls_is_let_go_at_the_limit_of_its_step_and_others_are_served,
    ),
    (
        "gateway.body_timeout",
        gateway::a_client_that_stalls_is_let_go_at_the_limit_of_its_step_and_others_are_served,
    ),
    (
        "gateway.write_timeout",
        gateway::a_client_that_stalls_is_let_go_at_the_limit_of_its_step_and_others_are_served,
    ),
    (
        "gateway.turn_timeout",
        gateway::a_client_that_stalls_is_let_go_at_the_limit_of_its_step_and_others_are_served,
    ),
    ("model.back_end", model::what_a_server_is_asked_is_what_the_settings_say),
    ("model.placement", model::the_model_service_is_where_it_is_placed_and_says_its_script),
    ("model.script", model::the_model_service_is_where_it_is_placed_and_says_its_script),
    ("model.script_pause", model::the_model_service_is_where_it_is_placed_and_says_its_script),
    ("model.url", model::what_a_server_is_asked_is_what_the_settings_say),
    ("model.model", model::what_a_server_is_asked_is_what_the_settings_say),
    (
        "model.api_key_file",
        openai::each_failure_of_a_server_ends_the_turn_with_its_name_and_the_way_out_and_never_with_the_key,
    ),
    ("model.api_key_env", model::what_a_server_is_asked_is_what_the_settings_say),
    ("model.connect_timeout", model::connecting_is_given_up_in_time),
    (
        "model.read_timeout",
        openai::each_failure_of_a_server_ends_the_turn_with_its_name_and_the_way_out_and_never_with_the_key,
    ),
    ("model.tokens_max", model::what_a_server_is_asked_is_what_the_settings_say),
    ("model.concurrent_max", model::so_many_completions_run_and_wait_as_may),
    ("model.waiting_max", model::so_many_completions_run_and_wait_as_may),
    ("model.retries_max", openai_models::a_busy_server_is_asked_again_as_often_as_the_settings_say),
    ("model.models", openai_models::another_model_stands_in_for_one_that_was_killed_and_everybody_is_told),
    ("model.fallback", openai_models::another_model_stands_in_for_one_that_was_killed_and_everybody_is_told),
    ("conversation.instructions", model::what_a_server_is_asked_is_what_the_settings_say),
    ("conversation.history_messages_max", model::what_a_server_is_asked_is_what_the_settings_say),
    ("logs.level", runtime::records_are_kept_and_shown_as_told),
    ("logs.levels", log_levels::levels_of_components_are_as_configured_and_as_ordered_for_a_while),
    ("logs.console", runtime::records_are_kept_and_shown_as_told),
    ("logs.retention", runtime::records_are_kept_as_long_as_told),
    ("logs.retention_rows", log_queries::the_oldest_records_go_when_they_are_too_many_or_too_large),
    ("logs.retention_bytes", log_queries::the_oldest_records_go_when_they_are_too_many_or_too_large),
    ("outbox.topics", outbox::what_is_accepted_is_what_the_settings_say),
    ("outbox.pending_max", outbox::what_is_accepted_is_what_the_settings_say),
    ("outbox.bytes_max", outbox::what_is_accepted_is_what_the_settings_say),
    ("outbox.item_bytes_max", outbox::what_is_accepted_is_what_the_settings_say),
    ("outbox.disk_floor", outbox::what_is_accepted_is_what_the_settings_say),
    ("outbox.policy", outbox::what_is_accepted_is_what_the_settings_say),
    ("outbox.attempts_max", outbox::a_delivery_is_tried_as_the_settings_say),
    ("outbox.retry_base", outbox::a_delivery_is_tried_as_the_settings_say),
    ("outbox.retry_cap", outbox::a_delivery_is_tried_as_the_settings_say),
    ("outbox.sweep", outbox::a_delivery_is_tried_as_the_settings_say),
    ("outbox.attempt_timeout", outbox::a_delivery_is_tried_as_the_settings_say),
    ("outbox.in_flight", outbox::a_delivery_is_tried_as_the_settings_say),
    ("outbox.absent_max", outbox::a_delivery_is_tried_as_the_settings_say),
    ("outbox.keep_finished", outbox::finished_messages_are_remembered_as_long_as_told),
    ("outbox.keep_finished_max", outbox::finished_messages_are_remembered_as_long_as_told),
    ("shutdown.drain", stopping::what_does_not_end_while_it_drains_is_killed_and_the_exit_code_is_10),
    ("shutdown.forced", stopping::a_stop_that_hangs_is_ended_by_the_watchdog_with_exit_code_11),
    ("program.name", program::a_program_is_run_as_it_is_described),
    ("program.command", program::a_program_is_run_as_it_is_described),
    ("program.args", program::a_program_is_run_as_it_is_described),
    ("program.directory", program::a_program_is_run_as_it_is_described),
    ("program.environment", program::a_program_is_run_as_it_is_described),
    ("program.restart", program::a_program_is_started_again_as_told),
    ("program.readiness", program::a_program_that_is_late_or_silent_is_started_again),
    ("program.ready_timeout", program::a_program_that_is_late_or_silent_is_started_again),
    ("program.needs", needs::a_program_waits_for_the_end_and_for_a_line_of_others_also_across_their_restarts),
    ("program.heartbeat", chaos::what_was_answered_survives_every_blow_and_nothing_is_left_behind),
    ("program.liveness", program::a_program_that_is_late_or_silent_is_started_again),
    ("program.stop_signal", program::a_program_is_stopped_as_told),
    ("program.grace", program::a_program_is_stopped_as_told),
    ("program.publish", program::a_program_is_run_as_it_is_described),
    ("program.subscribe", program::a_program_is_run_as_it_is_described),
    ("program.serve", program::a_program_is_run_as_it_is_described),
    ("program.request", program::a_program_is_run_as_it_is_described),
];

#[test]
fn every_key_of_the_schema_has_a_test_that_sees_its_effect() {
    let output = tool("interlock").args(["config", "schema"]).output().unwrap();
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut keys = BTreeSet::new();
    for (section, described) in schema["properties"].as_object().unwrap() {
        let properties = described.get("properties").unwrap_or(&described["items"]["properties"]);
        keys.extend(properties.as_object().unwrap().keys().map(|key| format!("{section}.{key}")));
    }
    let observed: BTreeSet<String> = OBSERVED.iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(OBSERVED.len(), observed.len(), "a key stands in the table twice");
    let missing: Vec<_> = keys.symmetric_difference(&observed).collect();
    assert!(missing.is_empty(), "no test sees the effect of, or there is no key: {missing:?}");
}
