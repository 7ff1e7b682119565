from flows.report.data import ReportData
def render_markdown(data: ReportData) -> str:
    return repr(data)
