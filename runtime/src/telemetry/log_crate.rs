//! Records of libraries that use the `log` crate: the same way as events, with their own target, file and line.

use std::sync::OnceLock;

use interlock_actors::{
    log_record::{Level, LogRecord},
    log_transport::{self, LevelSwitch, LogBuffer, Sink},
};

/// What takes the records of the `log` crate in this process.
struct Bridge {
    component: String,
    buffer: LogBuffer,
    sink: Sink,
    levels: LevelSwitch,
}

/// Takes them from now on, unless somebody does so already.
pub(super) fn into_the_log(component: &str, buffer: &LogBuffer, sink: &Sink, levels: &LevelSwitch) {
    static BRIDGE: OnceLock<Bridge> = OnceLock::new();
    let bridge = || Bridge {
        component: component.to_owned(),
        buffer: buffer.clone(),
        sink: sink.clone(),
        levels: levels.clone(),
    };
    if log::set_logger(BRIDGE.get_or_init(bridge)).is_ok() {
        set_loudest(levels);
    }
}

/// Libraries do not even make the text of what nobody keeps.
pub(super) fn set_loudest(levels: &LevelSwitch) {
    let rules = levels.rules();
    let loudest = rules.modules.values().copied().chain([rules.loudest()]).min();
    let of_log = |level| match level {
        Level::Trace => log::LevelFilter::Trace,
        Level::Debug => log::LevelFilter::Debug,
        Level::Info => log::LevelFilter::Info,
        Level::Warn => log::LevelFilter::Warn,
        Level::Error => log::LevelFilter::Error,
    };
    log::set_max_level(match loudest {
        Some(log_transport::Threshold::From(level)) => of_log(level),
        Some(log_transport::Threshold::Off) | None => log::LevelFilter::Off,
    });
}

fn level_of(level: log::Level) -> Level {
    match level {
        log::Level::Trace => Level::Trace,
        log::Level::Debug => Level::Debug,
        log::Level::Info => Level::Info,
        log::Level::Warn => Level::Warn,
        log::Level::Error => Level::Error,
    }
}

impl log::Log for Bridge {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.levels.keeps_exactly(level_of(metadata.level()), metadata.target(), &self.component)
    }

    fn log(&self, said: &log::Record<'_>) {
        if !self.enabled(said.metadata()) {
            return;
        }
        let own = log_transport::is_marked() || log_transport::is_own_target(said.target());
        // What a value does while it is formatted is none of the log's business.
        let message = log_transport::on_log_path(|| said.args().to_string());
        let mut record = LogRecord::new(level_of(said.level()), &self.component, message);
        record.target = said.target().to_owned();
        record.file = said.file().map(str::to_owned);
        record.line = said.line();
        match own {
            true => self.sink.take(&record),
            false => self.buffer.add(record),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_the_log_crate_is_kept_as_an_event_would_be() {
        let buffer = LogBuffer::default();
        let sink = Sink::new(Box::new(std::io::sink()), Level::Warn).unwrap();
        let levels = LevelSwitch::new(log_transport::LevelRules::new("info".parse().unwrap()));
        let bridge =
            Bridge { component: "model".to_owned(), buffer: buffer.clone(), sink: sink.clone(), levels };
        let say = |level, target: &str| {
            let record = log::Record::builder()
                .level(level)
                .target(target)
                .file(Some("src/client.rs"))
                .line(Some(7))
                .args(format_args!("said"))
                .build();
            log::Log::log(&bridge, &record);
        };
        say(log::Level::Info, "some_library::part");
        say(log::Level::Debug, "some_library::part");
        say(log::Level::Error, "interlock_bus::broker");
        let kept = buffer.take_rest();
        assert_eq!(kept.len(), 1, "{kept:?}");
        let record = &kept[0];
        assert_eq!((record.level, record.target.as_str()), (Level::Info, "some_library::part"));
        assert_eq!((record.file.as_deref(), record.line), (Some("src/client.rs"), Some(7)));
        assert_eq!((record.component.as_str(), record.message.as_str()), ("model", "said"));
        assert_eq!(sink.report().written, 1, "the log path's own goes to the sink");
    }
}
