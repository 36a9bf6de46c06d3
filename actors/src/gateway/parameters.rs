//! What stands behind the `?` of a request: each name at most as often as it may, and none that means nothing.

use std::{
    fmt::Display,
    num::{IntErrorKind, ParseIntError},
    str::FromStr,
    time::Duration,
};

use actix_web::{HttpRequest, web};
use jiff::{SignedDuration, Timestamp};

use super::error::ApiError;

/// Parameters of one request. More would be no question of anybody.
const PARAMETERS_MAX: usize = 64;

/// The parameters that have not been read yet.
#[derive(Debug)]
pub(super) struct Parameters {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Parameters {
    pub(super) fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        let left = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
            .map_err(|error| ApiError::BadRequest(format!("the query cannot be read: {error}")))?
            .into_inner();
        if left.len() > PARAMETERS_MAX {
            let text = format!("the query has {} parameters; the limit is {PARAMETERS_MAX}", left.len());
            return Err(ApiError::BadRequest(text));
        }
        Ok(Self { left, known: Vec::new() })
    }

    /// Every value of a name, in their order.
    pub(super) fn all(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        let (mine, left) = std::mem::take(&mut self.left).into_iter().partition(|(found, _)| found == name);
        self.left = left;
        let mine: Vec<(String, String)> = mine;
        mine.into_iter().map(|(_, value)| value).collect()
    }

    /// The value of a name that may be left out.
    pub(super) fn one(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        let mut all = self.all(name);
        match all.len() {
            0 | 1 => Ok(all.pop()),
            many => {
                Err(ApiError::BadRequest(format!("`{name}` stands {many} times in the query; say it once")))
            }
        }
    }

    /// The value of a name as what it is to be.
    pub(super) fn parsed<T: FromStr<Err: Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, ApiError> {
        self.one(name)?.map(|text| parse(name, &text)).transpose()
    }

    /// The value of a name as a number from 0 on.
    pub(super) fn number<T: FromStr<Err = ParseIntError>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error: ParseIntError| {
            let problem = match error.kind() {
                IntErrorKind::PosOverflow => "too large",
                _ => "no number from 0 on",
            };
            ApiError::BadRequest(format!("`{name}` is `{}`, which is {problem}", text.escape_debug()))
        })
    }

    /// The value of a name as `true` or `false`.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.one(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                let text = format!("`{name}` is `{}`; it has to be `true` or `false`", other.escape_debug());
                Err(ApiError::BadRequest(text))
            }
        }
    }

    /// The value of a name that has to be there.
    pub(super) fn needed<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Result<T, ApiError> {
        self.parsed(name)?.ok_or_else(|| ApiError::BadRequest(format!("`{name}` is missing in the query")))
    }

    /// Every value of a name as what it is to be.
    pub(super) fn all_parsed<T: FromStr<Err: Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<Vec<T>, ApiError> {
        self.all(name).iter().map(|text| parse(name, text)).collect()
    }

    /// How many, from 1 to `most`.
    pub(super) fn count(&mut self, name: &'static str, most: usize) -> Result<Option<usize>, ApiError> {
        let Some(count) = self.number::<usize>(name)? else { return Ok(None) };
        if (1..=most).contains(&count) {
            return Ok(Some(count));
        }
        Err(ApiError::BadRequest(format!("`{name}` is {count}; it has to be from 1 to {most}")))
    }

    /// A time: RFC 3339, or how long ago, as `10m`.
    pub(super) fn time(&mut self, name: &'static str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Some(time));
        }
        let ago = text.parse::<SignedDuration>().ok().filter(|ago| !ago.is_negative());
        let time = ago.and_then(|ago| Timestamp::now().checked_sub(ago).ok());
        time.map(Some).ok_or_else(|| {
            let text = format!("`{name}` is `{text}`, which is no time; write 2026-01-31T08:00:00Z, or 10m for ten minutes ago");
            ApiError::BadRequest(text)
        })
    }

    /// How long, as `90s` or `10m`.
    pub(super) fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, ApiError> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let duration =
            text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
        duration.map(Some).ok_or_else(|| {
            ApiError::BadRequest(format!(
                "`{name}` is `{text}`, which is no duration; write 500ms, 90s or 10m"
            ))
        })
    }

    /// Whether all was read.
    pub(super) fn end(self) -> Result<(), ApiError> {
        let Some((name, _)) = self.left.first() else { return Ok(()) };
        let known = match &self.known[..] {
            [] => "it takes none".to_owned(),
            known => format!("it takes {}", known.join(", ")),
        };
        Err(ApiError::BadRequest(format!("`{}` is no parameter of this; {known}", name.escape_debug())))
    }
}

fn parse<T: FromStr<Err: Display>>(name: &'static str, text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|error: T::Err| ApiError::BadRequest(format!("`{name}`: {error}")))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn of(query: &str) -> Parameters {
        Parameters::of(&TestRequest::with_uri(&format!("/x?{query}")).to_http_request()).unwrap()
    }

    #[test]
    fn a_parameter_that_is_unknown_doubled_or_of_another_kind_is_refused_by_name() {
        let mut parameters = of("limit=3&limt=4");
        assert_eq!(parameters.count("limit", 5).unwrap(), Some(3));
        let error = parameters.end().unwrap_err().to_string();
        assert!(error.contains("`limt`") && error.contains("it takes limit"), "{error}");
        assert!(of("a=1&a=2").one("a").unwrap_err().to_string().contains("2 times"));
        assert!(of("a=x").parsed::<u32>("a").unwrap_err().to_string().contains("`a`"));
        assert!(of("a=0").count("a", 9).is_err() && of("a=10").count("a", 9).is_err());
        assert!(of("").needed::<u32>("a").is_err());
        for (query, says) in [
            ("a=-1", "`a` is `-1`, which is no number from 0 on"),
            ("a=", "no number"),
            ("a=99999999999999999999999", "too large"),
        ] {
            let error = of(query).count("a", 9).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(of("a=true").flag("a").unwrap() && !of("").flag("a").unwrap());
        let error = of("a=yes").flag("a").unwrap_err().to_string();
        assert!(error.contains("`true` or `false`"), "{error}");
    }

    #[test]
    fn a_time_is_a_moment_or_how_long_ago() {
        let moment = of("t=2026-01-31T08:00:00Z").time("t").unwrap().unwrap();
        assert_eq!(moment.to_string(), "2026-01-31T08:00:00Z");
        let ago = Timestamp::now().duration_since(of("t=10m").time("t").unwrap().unwrap());
        assert!((590..650).contains(&ago.as_secs()), "{ago}");
        for bad in ["t=soon", "t=-5m", "t="] {
            assert!(of(bad).time("t").is_err(), "{bad}");
        }
        assert_eq!(of("d=500ms").duration("d").unwrap(), Some(Duration::from_millis(500)));
        assert!(of("d=-1s").duration("d").is_err());
    }
}
