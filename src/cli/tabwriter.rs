//! Text in columns, laid out as Go's text/tabwriter does it for kubectl: cells end with a tab, a column lasts as long as consecutive
//! lines have a cell in it. It never cuts a cell and never draws a line.

/// Lays out lines of tab-separated cells.
pub struct Tabwriter {
    width_min: usize,
    padding: usize,
    /// The widest each column has ever been, kept across flushes: what makes `get -w` line up with what it printed before.
    remembered: Option<Vec<usize>>,
    pending: String,
}

impl Tabwriter {
    /// The layout of `get`: columns at least six wide, three spaces between them.
    pub fn for_tables() -> Self {
        Self { width_min: 6, padding: 3, remembered: Some(vec![]), pending: String::new() }
    }

    /// The layout of `describe`: two spaces between columns.
    pub fn for_descriptions() -> Self {
        Self { width_min: 0, padding: 2, remembered: None, pending: String::new() }
    }

    pub fn write(&mut self, text: &str) {
        self.pending += text;
    }

    /// Starts anew: the next table has columns of its own.
    pub fn forget(&mut self) {
        if let Some(widths) = &mut self.remembered {
            widths.clear();
        }
    }

    /// Everything written since the last flush, as it was written.
    pub fn pending(self) -> String {
        self.pending
    }

    /// Everything written since the last flush, laid out.
    pub fn flush(&mut self) -> String {
        let pending = std::mem::take(&mut self.pending);
        let lines: Vec<Vec<&str>> = pending.split('\n').map(|line| line.split('\t').collect()).collect();
        let mut out = String::with_capacity(pending.len() * 2);
        // A line of one cell ends all columns, so each run of longer lines is laid out by itself.
        self.format(&lines, 0, lines.len(), &mut vec![], &mut out);
        out
    }

    fn format(&mut self, lines: &[Vec<&str>], mut from: usize, to: usize, widths: &mut Vec<usize>, out: &mut String) {
        let column = widths.len();
        let mut line = from;
        while line < to {
            if column + 1 >= lines[line].len() {
                line += 1;
                continue;
            }
            print(lines, from, line, widths, out);
            from = line;
            let mut width = self.width_min;
            while line < to && column + 1 < lines[line].len() {
                let cell = lines[line][column].chars().count();
                width = width.max(cell + self.padding);
                line += 1;
            }
            if let Some(remembered) = &mut self.remembered {
                if remembered.len() == column {
                    remembered.push(width);
                } else if let Some(known) = remembered.get_mut(column) {
                    width = width.max(*known);
                    *known = width;
                }
            }
            widths.push(width);
            self.format(lines, from, line, widths, out);
            widths.pop();
            from = line;
        }
        print(lines, from, to, widths, out);
    }
}

fn print(lines: &[Vec<&str>], from: usize, to: usize, widths: &[usize], out: &mut String) {
    for (index, line) in lines.iter().enumerate().take(to).skip(from) {
        for (column, cell) in line.iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(column).filter(|_| column + 1 < line.len()) {
                out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
        }
        if index + 1 < lines.len() {
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mut writer: Tabwriter, text: &str, expected: &str) {
        writer.write(text);
        assert_eq!(writer.flush(), expected);
    }

    #[test]
    fn tables_line_up_as_kubectl_prints_them() {
        check(
            Tabwriter::for_tables(),
            "NAME\tREADY\tSTATUS\nweb-1\t1/1\tRunning\na-longer-name\t0/1\tPending\n",
            "NAME            READY   STATUS\nweb-1           1/1     Running\na-longer-name   0/1     Pending\n",
        );
        check(Tabwriter::for_tables(), "A\tB\n1\t2\n", "A     B\n1     2\n");
        check(Tabwriter::for_tables(), "NAME\tX\tY\nn\t\ty\n", "NAME   X     Y\nn            y\n");
    }

    #[test]
    fn a_column_lasts_as_long_as_lines_have_it() {
        check(Tabwriter::for_descriptions(), "Name:\tweb\nLabels:\t<none>\nx\nA:\tb\n", "Name:    web\nLabels:  <none>\nx\nA:  b\n");
        check(Tabwriter::for_descriptions(), "a\tbb\tc\naaa\tb\n", "a    bb  c\naaa  b\n");
    }

    #[test]
    fn a_watch_keeps_its_columns() {
        let mut writer = Tabwriter::for_tables();
        writer.write("NAME\tAGE\na-long-name\t1s\n");
        assert_eq!(writer.flush(), "NAME          AGE\na-long-name   1s\n");
        writer.write("b\t2s\n");
        assert_eq!(writer.flush(), "b             2s\n");
        writer.forget();
        writer.write("b\t2s\n");
        assert_eq!(writer.flush(), "b     2s\n");
    }
}
