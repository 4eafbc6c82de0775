//! Figures as people read and write them.

use std::time::Duration;

/// Reads `90s`, `1m30s`, `500ms`, `2h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let malformed = || format!("\"{text}\" is not a duration; write 500ms, 90s, 10m or 1m30s");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let number: u64 = rest[..digits].parse().map_err(|_| malformed())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(malformed()),
        };
        let part = number.checked_mul(millis).map(Duration::from_millis).ok_or_else(malformed)?;
        total = total.checked_add(part).ok_or_else(malformed)?;
        rest = &rest[unit..];
    }
    if text.is_empty() { Err(malformed()) } else { Ok(total) }
}

/// Milliseconds as a duration on the wire or in a table: `0.41ms`, `12.4ms`, `512ms`, `1.25s`, `2m5s`.
pub fn latency(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    match millis {
        m if m < 1.0 => format!("{m:.2}ms"),
        m if m < 100.0 => format!("{m:.1}ms"),
        m if m < 1_000.0 => format!("{m:.0}ms"),
        m if m < 60_000.0 => format!("{:.2}s", m / 1e3),
        _ => age(duration.as_secs()),
    }
}

/// Bytes in powers of 1024: `512B`, `1.5KiB`, `20MiB`.
pub fn bytes(count: f64) -> String {
    let mut value = count;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1023.95 {
            return if unit == "B" || value >= 99.95 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1}TiB")
}

/// A share of 0.0…1.0: `99.42%`. What is not all is never shown as 100 %, what is not nothing never as 0 %.
pub fn percent(share: f64) -> String {
    let shown = (share * 1e4).round() / 1e2;
    let shown = match shown {
        s if s >= 100.0 && share < 1.0 => 99.99,
        s if s <= 0.0 && share > 0.0 => 0.01,
        s => s,
    };
    format!("{shown:.2}%")
}

/// A rate per second: `0.02`, `12.3`, `1234`.
pub fn rate(per_second: f64) -> String {
    match per_second {
        r if r > 0.0 && r < 0.095 => format!("{r:.2}"),
        r if r < 999.95 => format!("{r:.1}"),
        r => format!("{r:.0}"),
    }
}

/// An age or a window: `45s`, `2m`, `2m5s`, `3h20m`, `5d2h`.
pub fn age(seconds: u64) -> String {
    let two = |big: u64, unit: &str, small: u64, sub: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{sub}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// `1 pod`, `3 pods`: the noun with an s unless there is just one.
pub fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("90s"), Ok(90_000));
        assert_eq!(ms("1m30s"), Ok(90_000));
        assert_eq!(ms("250ms"), Ok(250));
        for bad in ["", "10", "s", "1y", "1m30", "-1s", "99999999999999999999s", "1 s"] {
            assert!(ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn latencies_keep_three_figures() {
        let show = |micros| latency(Duration::from_micros(micros));
        assert_eq!(show(412), "0.41ms");
        assert_eq!(show(12_400), "12.4ms");
        assert_eq!(show(512_300), "512ms");
        assert_eq!(show(1_250_000), "1.25s");
        assert_eq!(show(125_000_000), "2m5s");
    }

    #[test]
    fn bytes_are_binary() {
        let shown: Vec<_> = [0.0, 512.0, 1023.99, 1536.0, 150_000.0, 2e7].map(bytes).to_vec();
        assert_eq!(shown, ["0B", "512B", "1.0KiB", "1.5KiB", "146KiB", "19.1MiB"]);
    }

    #[test]
    fn almost_all_is_not_all() {
        assert_eq!(percent(1.0), "100.00%");
        assert_eq!(percent(0.999_99), "99.99%");
        assert_eq!(percent(0.000_001), "0.01%");
        assert_eq!(percent(0.0), "0.00%");
    }

    #[test]
    fn small_rates_do_not_become_nothing() {
        assert_eq!([0.0, 0.02, 12.34, 1234.5].map(rate), ["0.0", "0.02", "12.3", "1234"]);
    }
}
