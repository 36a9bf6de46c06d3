//! Conditions on payloads: a path, an operator, a value.

use std::cmp::Ordering;

use serde_json::Value;

use super::decode::Shown;

/// What is to be so.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    /// Empty for the whole payload.
    path: String,
    operator: Operator,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Contains,
}

/// The longer before those that they begin with.
const OPERATORS: [(&str, Operator); 7] = [
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
    ("~", Operator::Contains),
];

impl Condition {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let at = text.find(['!', '=', '<', '>', '~']);
        let found = at.and_then(|at| {
            let (path, rest) = text.split_at(at);
            let (sign, operator) = OPERATORS.iter().find(|(sign, _)| rest.starts_with(sign))?;
            let value = rest[sign.len()..].trim().to_owned();
            Some(Self { path: path.trim().to_owned(), operator: *operator, value })
        });
        found.ok_or_else(|| {
            format!("`{text}` is no condition; write a path, one of = != < <= > >= ~ (contains), and a value")
        })
    }

    /// Whether it is so. A place that is not there is equal to nothing, and different from everything.
    pub(super) fn holds(&self, shown: &Shown) -> bool {
        let whole;
        let found = match (self.path.is_empty(), shown) {
            (false, shown) => shown.at(&self.path),
            (true, Shown::Json(value)) => Some(value),
            (true, Shown::Text(text) | Shown::Hex(text)) => {
                whole = Value::String(text.clone());
                Some(&whole)
            }
        };
        let Some(found) = found else { return self.operator == Operator::NotEqual };
        let text = match found {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let order = match (found.as_f64(), self.value.parse::<f64>()) {
            (Some(found), Ok(value)) => found.partial_cmp(&value),
            _ => Some(text.as_str().cmp(&self.value)),
        };
        match self.operator {
            Operator::Equal => order == Some(Ordering::Equal),
            Operator::NotEqual => order != Some(Ordering::Equal),
            Operator::Less => order == Some(Ordering::Less),
            Operator::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Operator::Greater => order == Some(Ordering::Greater),
            Operator::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            Operator::Contains => text.contains(&self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_compared_as_numbers_and_everything_else_as_text() {
        let shown = Shown::Json(
            json!({ "turn": 10, "text": "hello there", "parts": [{ "code": null }], "ok": true }),
        );
        let holds = |text: &str| Condition::parse(text).unwrap().holds(&shown);
        for text in [
            "turn=10",
            "turn = 10.0",
            "turn>9",
            "turn<=10",
            "text~there",
            "ok=true",
            "parts.0.code=null",
            "no!=1",
            "text>hello",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in
            ["turn=1", "turn>10", "turn<9", "text~where", "no=1", "no~", "parts.1.code=null", "text=hello"]
        {
            assert!(!holds(text), "{text}");
        }
        assert!(Condition::parse("~hell").unwrap().holds(&Shown::Text("hello".to_owned())));
        assert!(Condition::parse("nothing").is_err() && Condition::parse("a!b").is_err());
    }
}
